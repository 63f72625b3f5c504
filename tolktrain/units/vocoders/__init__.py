"""Vocoders: from the units of a speech tokenizer to audio."""
