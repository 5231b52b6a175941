"""The training loop and what any run needs: optimiser, hooks, writers, logs, precision, checkpoints."""
