"""What to measure in the first hour on a GPU, in the order of its value: `launch/benchmark.sh`."""
