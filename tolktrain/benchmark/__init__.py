"""How fast a training step is: `tolktrain bench`."""
