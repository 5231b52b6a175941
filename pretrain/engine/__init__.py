"""The training loop and its optimiser, hooks, writers, logs, precision and checkpoints."""
