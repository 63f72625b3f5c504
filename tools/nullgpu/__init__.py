"""A null GPU: stub libraries of CUDA under the real PyTorch, Triton, DeepSpeed and c10d. See docs/null-gpu.md."""
