"""Plumbing that pretraining, readouts and detection share: files, locks, configs, checkpoints, metrics, images."""
