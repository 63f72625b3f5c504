"""Other formats of checkpoints: Hugging Face backbones and the names of the reference implementation."""
