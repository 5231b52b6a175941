"""Local learning on several devices, each of which trains a run of consecutive stages."""
