"""Trains variants of a model on equal tokens, and compares them."""
