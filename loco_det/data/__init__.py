"""Data sets: their checks, registration and loading for training and evaluation."""
