"""Benchmarks of speech language models, read from local folders as they are distributed; one file each.

`tolktrain.evaluate.benchmarks.registry` lists them.
"""
