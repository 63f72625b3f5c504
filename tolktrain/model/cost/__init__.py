"""What the model computes, holds and sends: per layer, per step, per pipeline stage."""
