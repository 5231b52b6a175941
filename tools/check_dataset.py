#!/usr/bin/env python3
"""Check a COCO, Cityscapes or Pascal VOC data set before training on it: all errors at once, and counts by class."""

import os
import sys

# Before tools/, where pretrain.py would hide the package of that name; so a checkout works that is not installed.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from loco_det.cli.main import script

if __name__ == "__main__":
    sys.exit(script("check_dataset"))
