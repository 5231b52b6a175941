"""Packaging of loco-det. Imports nothing but setuptools, so that metadata can be read before torch is installed.

The ranges below say what should work; ``constraints.txt`` holds the exact set that is tested. Detectron2 is missing
because it is not published under its own name: ``tools/install_detectron2.py`` installs it (``make setup`` does both).
"""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="loco-det",
    version="0.1.0",
    description="Local contrastive pretraining (LoCo) for detection and segmentation with Detectron2",
    license="Apache-2.0",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords="self-supervised learning, local learning, object detection, instance segmentation, Detectron2, LoCo",
    project_urls={"Paper": "https://arxiv.org/abs/2008.01342"},
    python_requires=">=3.10",
    packages=[*find_packages(include=["loco_det", "loco_det.*", "pretrain", "pretrain.*"]), "loco_det.configs"],
    package_dir={"loco_det.configs": "configs"},  # shipped, though a checkout has them on top
    package_data={
        "loco_det": ["py.typed", "report/*.j2", "ranking/*.j2", "checkpoints/*.yaml"],
        "pretrain": ["py.typed"],
        "loco_det.configs": ["*.yaml", "**/*.yaml", "README.md"],
    },
    entry_points={"console_scripts": ["loco-det = loco_det.cli.main:main"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "pycocotools>=2.0.7",
        "hotcoco>=1.3,<2",  # TEST.COCO_EVALUATOR
        "fvcore>=0.1.5",
        "iopath>=0.1.9",
        "yacs>=0.1.8",
        "opencv-python-headless>=4.11",
        "safetensors>=0.4",
        "numpy>=1.26",
        "pillow>=9.5",
        "pyyaml>=6",
        "matplotlib>=3.8",
        "jinja2>=3.1,<4",  # the report's page
        "markupsafe>=2.1",
        "tabulate>=0.9,<1",  # tables as text
        "tqdm>=4.66",
        "argcomplete>=3",  # completion of command lines in the shell
        "timm>=1.0.20",  # its networks, and its LARS optimiser
        "tensorboard>=2.15",
        "cityscapesscripts>=2.2.3",
        "shapely>=2",  # Detectron2's loader of Cityscapes polygons
        "setuptools<81",  # detectron2.model_zoo imports pkg_resources, which later releases no longer ship
    ],
    extras_require={
        "gpu": ["kornia>=0.7"],  # INPUT.ON_DEVICE
        "slurm": ["submitit>=1.5"],  # tools/slurm.py
        "docs": [
            "sphinx>=8; python_version >= '3.11'",
            "myst-parser>=4; python_version >= '3.11'",
            "furo>=2024.8; python_version >= '3.11'",
            "sphinx-copybutton>=0.5; python_version >= '3.11'",
        ],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.14",
            "scipy>=1.11",
            "kornia>=0.7",
            "submitit>=1.5",
            "huggingface-hub>=0.30",  # its reader of model cards
            "markdown>=3",  # renders them
            "lightly>=1.5; python_version >= '3.11'",  # the peer that losses, kNN and benchmarks are compared with
        ],
    },
)
