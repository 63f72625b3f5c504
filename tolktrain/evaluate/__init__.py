"""Evaluation of a trained model on held-out records. `tolktrain.evaluate.run.evaluate` is the entry point."""
