"""The benchmark of a training step: `tolktrain bench`."""
