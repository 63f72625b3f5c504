"""Documents of text to records."""
