"""The processes of a run: agreement between them, signals that end them, and children that end with their parent."""
