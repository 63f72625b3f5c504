"""DeepSpeed's engines around the model, and their state as slices of canonical tensors."""
