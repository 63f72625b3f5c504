"""Divergence of training, and the return to a checkpoint before it."""
