"""Checkpoints without a layout: float32 tensors in safetensors, small state in JSON, a manifest with checksums."""
