"""Weights of other programs, written as folders that tolktrain reads."""
