"""Checks of a data set before it is trained on: all errors at once, not only the first."""
