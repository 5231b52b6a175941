"""Ranking of checkpoints: how sure a difference of two rows is."""
