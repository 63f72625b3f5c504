#!/bin/bash
# Tests and benchmarks everything that depends on the GPU, and writes the results to docs/benchmarks/<date>-<device>/:
# the tests of the kernels on the device, their microbenchmarks, and whole training steps of the published models,
# compared with the reference implementation and with the fastest version in plain PyTorch. Without a GPU, it runs the
# parts that work on a CPU.
# Usage: bash launch/benchmark.sh [OUTPUT], with the virtual environment active or in .venv.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
# PyTorch loads compiled kernels from a path in /tmp that another user may have created.
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
    # The reference implementation needs far more memory per micro batch, so both use a size that fits it.
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
