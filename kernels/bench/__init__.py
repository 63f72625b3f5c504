"""Microbenchmarks of the kernels; `python -m tolktrain_kernels.bench` runs them all."""
