"""Generation of speech and text by a trained model. `tolktrain.generate.run.generate` is the entry point."""
