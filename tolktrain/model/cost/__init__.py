"""Computation, memory and communication of the model, per layer, step and pipeline stage."""
