"""Generated street scenes with exact masks, which need no download: the data of ``make demo``."""
