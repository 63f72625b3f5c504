"""What the cluster tells a process: its place among the ranks, and that it should stop."""
