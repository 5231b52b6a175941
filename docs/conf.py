"""Sphinx: the site of docs/, built by `make docs` with warnings as errors."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

project = "loco-det"
author = "the loco-det authors"
release = importlib.metadata.version("loco-det")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"loco-det {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
myst_fence_as_directive = ["eval-rst"]
suppress_warnings = ["myst.xref_missing", "myst.header"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_mock_imports = []
copybutton_prompt_text = "$ "
