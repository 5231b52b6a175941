"""Learning from local losses: from the config to a learner, which computes all losses and gradients of a batch."""
