"""The report of a run: a page that needs nothing beside itself, and a table for the terminal. See `tolktrain.report.run`."""
