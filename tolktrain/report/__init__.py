"""The report of a run: a self-contained page, and tables for the terminal."""
