"""Predicts memory, speed and cost of the layouts of a job, before it is submitted."""
