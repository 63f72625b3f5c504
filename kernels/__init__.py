"""Kernels of tolktrain, each beside its plain PyTorch twin. Imports nothing of tolktrain itself."""
