"""A folder of unlabeled images as a seeded, resumable stream of two-view batches."""
