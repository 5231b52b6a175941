"""Training of a detector, on Detectron2's DefaultTrainer, and the files of a run."""
