#!/bin/bash
# Tests the paper's claim in miniature: trains the quickstart model and variants of it that lack a part, on equal tokens,
# several seeds each, and prints one table with intervals over seeds and held-out items.
#   bash launch/ablations.sh                                    # six variants, three seeds, one process per core
#   bash launch/ablations.sh --steps 300 --seeds 0 --out runs/ablations-300
#   bash launch/ablations.sh --table                            # the table of the runs that are done
# A sweep that was stopped continues with the same command. `--help` describes all options.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit
[ -n "${VIRTUAL_ENV:-}" ] || { [ -x "$root/.venv/bin/python" ] && PATH="$root/.venv/bin:$PATH"; }
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python -m tolktrain.benchmark.ablations "$@"
