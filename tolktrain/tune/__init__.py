"""The measured search for the fastest setting of a recipe: `tolktrain tune`."""
