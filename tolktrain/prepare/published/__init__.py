"""Published sets in the layout of the SmolTolk authors to records."""
