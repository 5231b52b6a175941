# Every target works as the first command on a fresh clone: it makes .venv and installs what it needs, once.
# `make PYTHON=python3.12 setup` chooses the Python of a new .venv.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed# what the demo and the commands need
TESTED := $(VENV)/.installed-test# and what tests, docs and benchmarks need

# With it every process would compile torch's Python files anew, because of --no-compile below: 6 seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo demo-long test test-fast durations fuzz faults lint docs bench gpu-check clean distclean

setup: $(TESTED)

demo: $(INSTALLED)
	$(RUN) tools/demo.py

demo-long: $(INSTALLED)
	$(RUN) tools/demo.py --long

# Two processes of one thread each: the tests' tensors are small. A file's tests stay together, for their fixtures; the
# longest files come first (tests/helpers/durations.py).
TWO := -n 2 --dist loadfile --no-loadscope-reorder

test test-fast: export OMP_NUM_THREADS ?= 1
test test-fast: export RAYON_NUM_THREADS ?= 1
test: $(TESTED)
	$(RUN) -m pytest $(TWO)

# A minute: the first case of every test that starts no process (tests/helpers/fast.py).
test-fast: $(TESTED)
	$(RUN) -m pytest $(TWO) -m fast

# Where the time of the tests goes, as of their last run.
durations: $(TESTED)
	$(RUN) tests/helpers/durations.py

# New cases of tests/fuzz for FUZZ_SECONDS in all, divided among its targets; `make test` runs the same few each time.
# A failure names its seed: `FUZZ_SEED=<that> .venv/bin/python -m pytest tests/fuzz/<file>::<test>` repeats it.
fuzz: export OMP_NUM_THREADS ?= 1
fuzz: export FUZZ_SECONDS ?= 600
fuzz: $(TESTED)
	$(RUN) -m pytest tests/fuzz --tb=short --show-capture=no

# All kills, full disks and dead processes, of which `make test` tries a few; ends with a table of tried and survived.
faults: export OMP_NUM_THREADS ?= 1
faults: $(TESTED)
	$(RUN) -m pytest -n 2 --dist load -m fault tests

# What .pre-commit-config.yaml runs before each commit, too.
lint: $(TESTED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# The site: docs/_build/index.html
docs: $(TESTED)
	$(RUN) -m sphinx -q -W --keep-going -b html docs docs/_build

# Measures everything anew, for an hour or two, and writes the figures into README and docs.
bench: $(TESTED)
	@set -e; for file in $(sort $(filter-out %/__init__.py %/common.py %/render.py %/gpu_check.py,$(wildcard benchmarks/*.py))); do \
	    echo "== $$file"; $(RUN) $$file; done
	$(RUN) benchmarks/render.py
	$(RUN) studies/hero.py

# On a machine with a GPU: whether it computes what a CPU computes, and how fast: docs/gpus.md
gpu-check: $(TESTED)
	$(RUN) benchmarks/gpu_check.py

# What the demo made, and caches. Your runs in output/ stay, and the installation: `make distclean` removes that too.
clean:
	rm -rf demo_output build docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name .git -prune -o -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# pip writes INSTALLER last: a package without it was cut off half-way, but pip would take it for installed.
# --no-compile: Python compiles the modules that are used when they are first imported, a third of all.
$(INSTALLED): setup.py pyproject.toml constraints.txt loco_det/cli/install_detectron2.py
	@if [ -d $(VENV) ]; then find $(VENV) -name '*.dist-info' -type d ! -exec test -f {}/INSTALLER \; -prune -exec rm -rf {} +; fi
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e .
	$(RUN) tools/install_detectron2.py --constraint constraints.txt
	@touch $@

$(TESTED): $(INSTALLED)
	$(RUN) -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[test,docs]'
	@touch $@
