"""Training of a detector: Detectron2's DefaultTrainer with guards, and the files that a run leaves."""
