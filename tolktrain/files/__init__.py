"""Reading what others made: names, content and text that came in files are not trusted."""
