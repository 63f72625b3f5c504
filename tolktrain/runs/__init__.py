"""The run folder: names of its files, configuration, metrics, lease, rollback records, copies, and models out of it."""
