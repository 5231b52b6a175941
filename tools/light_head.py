#!/usr/bin/env python3
"""Rank frozen encoders in minutes: train a light detection head on features that are computed once."""

import os
import sys

# Before tools/, where pretrain.py would hide the package of that name; so a checkout works that is not installed.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from loco_det.cli.main import script

if __name__ == "__main__":
    sys.exit(script("light_head"))
