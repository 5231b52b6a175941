"""What the command lines share: options, configs, processes, run folders, and how a command ends."""
