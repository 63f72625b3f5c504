"""The callbacks of the training loop, one per file."""
