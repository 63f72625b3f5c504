"""Training: stages, DeepSpeed engine, loop and callbacks."""
