"""Inspection of data: sequences as the model sees them, statistics, and audio made of units."""
