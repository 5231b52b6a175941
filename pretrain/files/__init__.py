"""What is read from disk and written to it: whole files, locks, YAML, JSON, checkpoints, metrics, images, safe text."""
