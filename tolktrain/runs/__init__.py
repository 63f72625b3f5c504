"""The run directory: names of its files, configuration, metrics, lease, rollback records, copies, loading models."""
