"""The processes of a run: how they agree, which signals end them, and that none outlives its launcher."""
