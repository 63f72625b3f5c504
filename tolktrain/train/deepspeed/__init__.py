"""DeepSpeed's engines around the model, and the state in them as slices of canonical tensors."""
