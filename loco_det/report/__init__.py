"""What a reader sees of runs: tables, curves, pictures, pages."""
