#!/bin/bash
# Tests and measures everything that depends on the GPU, the most valuable first, and ends in time. Results are written
# as they are known, to docs/benchmarks/<date>-<device>/. Without a GPU, it runs the parts that work on a CPU.
# Usage: bash launch/benchmark.sh [--minutes N] [--out DIR] [--only NAMES] [key=value ...], with the virtual environment
# active or in .venv. key=value are overrides of the configurations of training steps.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit
# PyTorch loads compiled kernels from a path in /tmp that another user may have created.
TMPDIR=$(mktemp -d) || exit
export TMPDIR
export TRITON_DEFAULT_FP_FUSION=${TRITON_DEFAULT_FP_FUSION:-1} # as tolktrain sets it
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}} # as jobs do
trap 'rm -rf "$TMPDIR"' EXIT
[ -d "$root/.venv" ] && PATH="$root/.venv/bin:$PATH"
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
python -m tolktrain.benchmark.first_hour "$@" &
child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM INT
wait "$child"
code=$?
kill -0 "$child" 2>/dev/null && { wait "$child"; code=$?; }
exit "$code"
