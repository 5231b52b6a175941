"""What checkpoints are worth for detection: the steps of ``loco-det evaluate``, and the ranking that comes out."""
