"""Checkpoints of others: Hugging Face backbones and the published SmolTolk naming."""
