"""What pretraining and detection run on, whatever is trained: processes, signals, files."""
