"""Checks of a data set before it is trained on: all that is wrong at once, not only the first."""
