"""What a checkpoint file is: its project, its network, its weights, and what it expects of its images."""
