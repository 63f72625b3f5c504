"""Reads records from MDS shards and makes the batches of a training step."""
