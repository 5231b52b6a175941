"""Run folders: finding, reading and comparing them with published rows."""
