"""Learn image encoders from unlabeled images without end-to-end backpropagation."""
