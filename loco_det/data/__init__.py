"""Data sets: generated demo scenes, and what the detectors are trained on."""
