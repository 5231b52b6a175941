#!/usr/bin/env python3
"""Install Detectron2 into the running Python, without a compiler."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from loco_det.cli.main import script

if __name__ == "__main__":
    sys.exit(script("install_detectron2"))
