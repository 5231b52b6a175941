"""Box and mask AP by the official evaluators, and an analysis of what a detector gets right and wrong."""
