"""Preparation of data sets: offline, never imported by training."""
