"""Commands that list what there is: shipped configs, published checkpoints, runs."""
