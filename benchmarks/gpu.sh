#!/usr/bin/env bash
# Everything that needs a GPU, in parts that end within 9 minutes each. Needs no network.
#
#   benchmarks/gpu.sh                    all parts, one after the other
#   benchmarks/gpu.sh tests              the tests marked gpu
#   benchmarks/gpu.sh ceilings           copy bandwidth, matrix rates, exponentials
#   benchmarks/gpu.sh engines [QUESTION] tiles, epilogue, accumulate, attention, crossover
#   benchmarks/gpu.sh sweep OP           an op against its peers, small to large; goes on where an
#                                        earlier run of the same commit and day stopped
#   benchmarks/gpu.sh train              whole training steps
#   benchmarks/gpu.sh beside METHOD      a few epochs of all of CIFAR-10 beside lightly's code
#   benchmarks/gpu.sh runs METHOD [SEED] 200 epochs of all of CIFAR-10, judged; goes on where an
#                                        earlier call stopped
#   benchmarks/gpu.sh --dry-run [PART]   the same at tiny sizes on a CPU (Triton's interpreter)
#
# OUT      where JSON and logs go; default benchmarks/results
# CIFAR10  folder and start of the names of two Parquet files, for beside and runs
# WHEELS   a folder of wheels; what is in it is installed without an index, peers for example
# PYTHON   default python3; BUDGET: seconds for one part, default 500
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
BUDGET=${BUDGET:-500}

DRY=
if [ "${1:-}" = --dry-run ]; then
    DRY=1
    shift
    OUT=${OUT:-$(mktemp -d)} # its numbers mean nothing
    export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
fi

export OUT=${OUT:-$PWD/benchmarks/results}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT"
failed=0
spent=0 # seconds that preparing took from the first part's time

left() { echo $((BUDGET - spent)); }

# part NAME COMMAND...: runs the command, at most the time left and 40 s, with a log of its own.
part() {
    local name=$1 start=$SECONDS code=0
    shift
    echo "== $name: $*"
    timeout -k 10 $(($(left) + 40)) "$@" 2>&1 | tee "$OUT/$name.log" || code=$?
    echo "== $name: exit $code after $((SECONDS - start)) s" | tee -a "$OUT/$name.log"
    [ $code -eq 0 ] || failed=1
    spent=0
}

# The compiled kernels, where they are not built or csrc is newer; peers, where wheels are given.
prepare() {
    if [ -n "${WHEELS:-}" ]; then
        for wheel in "$WHEELS"/*.whl; do
            "$PYTHON" -m pip install --quiet --no-index --no-deps "$wheel" ||
                echo "not installed: $wheel"
        done
    fi
    local built # for this Python: a kernel built for another one cannot be loaded
    built=sslops/_C$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
    if [ ! -e "$built" ] || [ -n "$(find csrc setup.py -newer "$built" -type f | head -1)" ]; then
        [ -n "$DRY" ] || part build "$PYTHON" setup.py build_ext --inplace
    fi
    spent=$SECONDS
}

# The files that hold tests for a GPU, by name: others may need what is not installed.
tests() {
    local files
    files=$(grep -rlE 'mark\.gpu' tests --include='test_*.py')
    # shellcheck disable=SC2086
    part tests "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider ${DRY:+--collect-only} \
        --continue-on-collection-errors $files
}

ceilings() { part ceilings "$PYTHON" benchmarks/ceilings.py ${DRY:+--tiny}; }

engines() {
    part "engines${1:+_$1}" "$PYTHON" benchmarks/engines.py ${DRY:+--tiny} ${1:+--question "$1"} \
        --budget "$(left)"
}

# Names as benchmarks/results.py does: nvidia-h200.
device() {
    nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr A-Z a-z |
        sed -E 's/[^a-z0-9]+/-/g'
}

# Floors need the ceilings of this device: measured now unless a results file has them.
sweep() {
    if [ -n "$DRY" ]; then
        part "sweep_$1" "$PYTHON" benchmarks/run.py --sweep "$1" --tiny --budget "$(left)"
        return
    fi
    if ! grep -qs '"ceilings"' "$OUT"/*.json benchmarks/results/"$(device)"_*.json; then
        local start=$((SECONDS - spent))
        ceilings
        spent=$((SECONDS - start))
    fi
    part "sweep_$1" "$PYTHON" benchmarks/run.py --sweep "$1" --skip-done --budget "$(left)"
}

train() { part train "$PYTHON" benchmarks/train_step.py ${DRY:+--tiny} --budget "$(left)"; }

beside() {
    part "beside_$1" "$PYTHON" benchmarks/representations.py ${CIFAR10:+"$CIFAR10"} --full \
        --method "$1" --seeds 1 ${DRY:+--tiny}
}

# Their folders stay beside the checkout's sources, so that the next call finds them.
runs() {
    part "runs_$1_${2:-0}" "$PYTHON" benchmarks/full_runs.py ${CIFAR10:+"$CIFAR10"} --method "$1" \
        --seed "${2:-0}" --workers 4 --budget "$(left)" ${DRY:+--tiny --runs "$OUT/runs"}
}

ops() { (cd benchmarks/baselines && ls *.py | sed 's/\.py$//'); }

all() {
    tests
    ceilings
    engines
    local op
    for op in $(ops); do sweep "$op"; done
    train
    part report "$PYTHON" benchmarks/report.py "$OUT"/*.json
}

prepare
set -- "${1:-all}" "${2:-}" "${3:-}"
case "$1" in
tests | ceilings | train | all) "$1" ;;
engines) engines "${2:-}" ;;
beside | runs)
    if [ -z "${2:-}" ]; then
        echo "gpu.sh $1 METHOD: simclr, moco, dino or mae; see benchmarks/full_runs.py" >&2
        exit 2
    fi
    "$1" "$2" "${3:-}"
    ;;
sweep)
    if [ -z "${2:-}" ]; then
        echo "gpu.sh sweep OP: one of" $(ops) >&2
        exit 2
    fi
    sweep "$2"
    ;;
*)
    sed -n '2,17s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
exit $failed
