#!/usr/bin/env python3
"""Makes the demo data: generated street scenes as an image folder, in COCO's layout, Cityscapes' and Pascal VOC's."""

import os
import sys

# Before tools/, where pretrain.py would hide the package of that name; so a checkout works that is not installed.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from loco_det.cli.main import script

if __name__ == "__main__":
    sys.exit(script("make_demo_data"))
