"""Readouts of an encoder's features: linear classifiers and nearest neighbours on each stage's pooled output."""
