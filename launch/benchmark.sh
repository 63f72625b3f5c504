#!/bin/bash
# Checks and measures everything that a GPU changes, and leaves it under docs/benchmarks/<date>-<device>/:
# the kernels' tests on the device, their microbenchmarks, and whole training steps of the published models against the
# published form and the strongest form in plain PyTorch. Without a GPU: what a CPU can show of the same.
# Usage: bash launch/benchmark.sh [OUTPUT], with the virtual environment active or in .venv.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
# PyTorch would load compiled kernels from a name in /tmp that another user may have taken.
TMPDIR=$(mktemp -d) || exit
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
[ -d .venv ] && PATH="$PWD/.venv/bin:$PATH"
device=$(python -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")') || exit 1
slug=$(tr -cs '[:alnum:]' '-' <<<"${device,,}" | sed 's/^-*//; s/-*$//')
output=${1:-docs/benchmarks/$(date -u +%F)-$slug}
mkdir -p "$output"
failed=()

run() {
    echo "== $*"
    "$@" || failed+=("$*")
}

if [ "$device" = CPU ]; then
    run python -m tolktrain_kernels.bench --output "$output/kernels"
    run tolktrain bench configs/bench/cpu.yaml --against published --output "$output/step-cpu"
else
    run pytest -q -rs tests/kernels tests/interop -k gpu
    run python -m tolktrain_kernels.bench --output "$output/kernels"
    # The published form keeps far more of a micro batch than ours: both are timed at what it can hold.
    gigabytes=$(python -c 'import torch; print(torch.cuda.get_device_properties(0).total_memory // 10**9)')
    for model in 150m:16 400m:8 2b:4; do
        size=${model#*:}
        [ "$gigabytes" -lt 100 ] && size=$((size / 2))
        run tolktrain bench "configs/bench/smoltolk-${model%:*}.yaml" train.micro_batch_size=$size \
            --against published,strongest --output "$output/step-${model%:*}"
    done
    for model in 150m 400m 2b; do
        run tolktrain bench "configs/bench/smoltolk-$model.yaml" --output "$output/step-$model-as-configured"
    done
fi
for command in "${failed[@]}"; do
    echo "failed: $command" >&2
done
echo "results: $output"
exit ${#failed[@]}
