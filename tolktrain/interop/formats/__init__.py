"""Formats of trained weights from which a run can begin."""
