#!/bin/bash
# Trains one run in several Slurm jobs, each with its own nodes and layout. A job starts when the previous one has
# finished its stage, and resumes from its checkpoint:
#   bash launch/chain.sh configs/smoltolk-2b.yaml --job-name=long \
#       -- adapter --nodes=4 parallel.tensor_parallel_size=2 \
#       -- joint --nodes=16 --time=48:00:00 parallel.pipeline_parallel_size=2
# Each -- is followed by the last stage of a job. Words that begin with a dash are options of sbatch, the others are
# overrides. Words before the first -- apply to all jobs. If a job fails, the later ones are cancelled.
set -uo pipefail

refuse() {
    echo "${0##*/}: $*" >&2
    exit 2
}

usage="usage: $0 CONFIG [option of sbatch | key=value ...] -- STAGE [option of sbatch | key=value ...] [-- STAGE ...]"
if [ $# -eq 0 ] || [[ $1 = -* ]]; then
    echo "$usage" >&2
    exit 2
fi
command -v sbatch >/dev/null || refuse "sbatch is not installed here; run it on a login node of a Slurm cluster"
launcher=$(dirname "${BASH_SOURCE[0]}")/pretrain.sbatch
config=$1
shift

# Index i: stage, options and overrides of job i; index 0: of all jobs. @Q quotes them, so that `eval` keeps them as is.
stages=("") options=("") overrides=("")
last=0
while [ $# -gt 0 ]; do
    case $1 in
        --)
            [[ $# -gt 1 && $2 != -* && $2 != *=* ]] || refuse "the name of a stage must follow --"
            last=$((last + 1))
            stages+=("$2") options+=("") overrides+=("")
            shift
            ;;
        --array* | -a*) refuse "$1: the jobs of a chain are no arrays" ;;
        --job-name* | -J* | run.name=*)
            [ "$last" -eq 0 ] || refuse "$1 belongs before the first --: all jobs of a chain train one run"
            ;;&
        --?* | -[a-zA-Z]?*) options[last]+=" ${1@Q}" ;;
        *=*) overrides[last]+=" ${1@Q}" ;;
        *) refuse "$1 is neither an option of sbatch, such as --nodes=4, nor an override, such as run.seed=1" ;;
    esac
    shift
done
[ "$last" -gt 0 ] || refuse "no stage is named; $usage"

job=() run=()
compose() { # Sets `job`, the options, and `run`, the configuration and overrides, of job $1.
    local early=""
    [ "$1" -eq "$last" ] || early="evaluation.after_training=false"
    eval "job=(${options[0]}${options[$1]})"
    eval "run=(${config@Q}${overrides[0]} $early${overrides[$1]})"
    run+=("train.last_stage=${stages[$1]}")
}

# All jobs are checked before anything is submitted.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
setup=${TOLKTRAIN_SETUP:-$root/launch/setup.sh}
if [ -f "$setup" ]; then
    set +u # scripts of environment modules read unset variables
    # shellcheck disable=SC1090
    source "$setup" || refuse "$setup, which prepares the environment, failed"
    set -u
fi
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x "$root/.venv/bin/python" ]; then
    export PATH="$root/.venv/bin:$PATH"
fi
for ((i = 1; i <= last; i++)); do
    compose "$i"
    if [ -z "${TOLKTRAIN_CONTAINER:-}" ]; then
        python -m tolktrain config "${run[@]}" >/dev/null ||
            refuse "job $i (${stages[i]}): see above; nothing was submitted"
    fi
    said=$(sbatch --test-only ${job[@]+"${job[@]}"} "$launcher" "${run[@]}" 2>&1) ||
        refuse "job $i (${stages[i]}): $said; nothing was submitted"
done

after=()
numbers=()
for ((i = 1; i <= last; i++)); do
    compose "$i"
    if ! number=$(sbatch --parsable ${job[@]+"${job[@]}"} ${after[@]+"${after[@]}"} "$launcher" "${run[@]}"); then
        [ ${#numbers[@]} -eq 0 ] || scancel "${numbers[@]}"
        refuse "job $i (${stages[i]}) could not be submitted; those before it are cancelled"
    fi
    number=${number%%;*} # may be followed by the name of the cluster
    numbers+=("$number")
    after=("--dependency=afterok:$number" --kill-on-invalid-dep=yes)
    echo "job $number: to the end of stage ${stages[i]}"
done
