"""A preparation as a job of many processes: parts, workers, shards, splits, progress."""
