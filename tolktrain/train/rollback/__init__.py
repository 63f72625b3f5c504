"""Detection of divergence, and the rollback to a checkpoint before it."""
