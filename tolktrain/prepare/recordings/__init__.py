"""Recordings and their transcripts to records."""
