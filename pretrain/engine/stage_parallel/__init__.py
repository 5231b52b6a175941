"""The training loop of one of several processes, each of which trains a run of consecutive stages."""
