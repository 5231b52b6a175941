"""What training loops share, of pretraining, readouts and detection alike."""
