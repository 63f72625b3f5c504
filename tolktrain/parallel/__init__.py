"""Groups of ranks, and the one way in to megatron-core."""
