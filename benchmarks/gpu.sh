#!/usr/bin/env bash
# Does the vote pay on this machine's GPUs? One command, under eight minutes, no network:
#     benchmarks/gpu.sh          the records and the log go to $OUT (default: results)
# It runs the tests of what runs on a GPU, the kernels against a copy on it, and the head to head with NCCL at 1, 2, 4, 8
# and 16 ranks; where those are more than the GPUs, they share them, and the tables say so in their titles.
# PYTHON: with mpisign's packages; MPIRUN: of the MPI that its mpi4py runs on. RANKS, MODEL, ITERATIONS: for less.
# DEVICE=cpu tries the script out where there is no GPU; its times are of no use.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
OUT=${OUT:-results}
DEVICE=${DEVICE:-cuda}

complete='import importlib.util, sys
sys.exit(not all(map(importlib.util.find_spec, ("mpi4py", "mpisign", "numba", "tabulate", "torch", "torchvision"))))'
for python in "${PYTHON:-}" .venv/bin/python python3 python; do
    [ -n "$python" ] && "$python" -c "$complete" 2>/dev/null && break
    python=
done
[ -n "$python" ] || { echo "gpu.sh: error: no Python here has mpisign's packages: see README.md, or set PYTHON"; exit 2; }
for mpirun in "${MPIRUN:-}" "$(dirname "$(command -v "$python")")/mpirun" "$(command -v mpirun)"; do
    [ -n "$mpirun" ] && [ -x "$mpirun" ] && break
    mpirun=
done
[ -n "$mpirun" ] || { echo "gpu.sh: error: no mpirun beside $python or on the PATH: set MPIRUN"; exit 2; }
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())') || exit 2
[ "$DEVICE" = cpu ] || [ "$gpus" -gt 0 ] || { echo "gpu.sh: error: no CUDA device here: nothing was measured"; exit 2; }
[ "$DEVICE" = cuda ] || export CUDA_VISIBLE_DEVICES=
mkdir -p "$OUT" && [ -w "$OUT" ] || { echo "gpu.sh: error: $OUT cannot be written"; exit 2; }

"$mpirun" --version 2>/dev/null | grep -q 'Open MPI' && more="--oversubscribe --bind-to none" || more=
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
date=$(date -u +%Y%m%d-%H%M%S)
log=$OUT/$date-gpu.log
failed=0

# Runs a step for so many seconds at most; all it says goes to the log, of which no step gets more than 300 KB.
step() {
    local name=$1 seconds=$2
    shift 2
    echo "=== $name: $*" >>"$log"
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tail -c 300000 >>"$log"
    local code=${PIPESTATUS[0]}
    echo "$name: $([ "$code" = 0 ] && echo passed || echo "FAILED (exit code $code)")" | tee -a "$log"
    [ "$code" = 0 ] || failed=1
}

[ "$DEVICE" = cpu ] || nvidia-smi >>"$log" 2>&1
if "$python" -c 'import pytest, hypothesis' 2>/dev/null; then
    [ "$DEVICE" = cpu ] && which="cpu and pack" || which=
    step "tests of the device" 100 "$python" -m pytest -q -p no:cacheprovider -k "$which" tests/coding/test_device.py
else
    echo "tests of the device: not run, $python has no pytest and hypothesis" | tee -a "$log"
fi
[ "$DEVICE" = cpu ] || step "kernels" 45 "$python" -m benchmarks.speed.device --output "$OUT/$date-device.jsonl"
for ranks in ${RANKS:-1 2 4 8 16}; do
    [ "$DEVICE" = cuda ] && [ "$ranks" -gt "$gpus" ] && share=--share-gpus || share=
    record=$OUT/$date-${MODEL:-resnet50}-$ranks-ranks.jsonl
    # shellcheck disable=SC2086 # more and share are options or nothing
    step "$ranks ranks" 65 "$mpirun" $more -n "$ranks" "$python" -m mpisign.bench --model "${MODEL:-resnet50}" \
        --batch-size "$((32 / ranks > 0 ? 32 / ranks : 1))" ${ITERATIONS:+--iterations "$ITERATIONS"} $share \
        --output "$record"
    [ ! -f "$record" ] || "$python" -m mpisign.report "$record" | awk '/^Where/ {rest = 1} !rest'
done
[ ! -f "$OUT/$date-device.jsonl" ] || "$python" -m benchmarks.speed.device --show "$OUT/$date-device.jsonl"
echo "records and log: $OUT/$date-*"
exit $failed
