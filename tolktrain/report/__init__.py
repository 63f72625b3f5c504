"""The report of a run: a page that needs nothing beside itself, and tables for the terminal."""
