"""From records in MDS shards to the batches of a training step."""
