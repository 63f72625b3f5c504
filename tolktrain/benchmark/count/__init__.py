"""Bytes, FLOPs and launches of a training step, counted: `tolktrain bench --count`."""
