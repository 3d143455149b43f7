#!/usr/bin/env bash
# On a machine with a GPU: one part of the benchmark at full scale, of less than ten minutes; the same call goes on where
# the last part ended, until all is done.
#   docs/gpu_benchmark.sh cifar10|cifar4|cifar4-reduced[-augmented] IMAGES.npz [OUT [ARGUMENT...]]
# IMAGES.npz: train_images, train_labels, test_images, test_labels, class_names. ARGUMENT: more of docs/benchmark.py run, as
# --seeds 0-2, --jobs 2 (runs at a time on one GPU), --only 'elr, *'. Without any: seed 0 of every method on every row.
#
# What is finished stands in OUT/benchmark.jsonl: with an OUT that was carried back and there again no cell runs twice.
# A run that the clock interrupts lies in STORE and goes on at its last epoch as long as STORE is there, as it is on a
# machine that stays; else its cell begins anew, so give a part as long as a cell takes.
#
# Small runs share one GPU: fifteen of the reduced CIFAR-4 at a time (`cifar4-reduced`, --jobs 15) were done at 19 a minute
# on an H100 with 16 cores, with an MPS daemon (`nvidia-cuda-mps-control -d`) before the first.
#
# MINUTES=9       the clock of one part; the epoch in progress is ended, the page written and OUT filled after it
# STORE=mlruns    folder of MLflow's store and of checkpoints, here
# HUMAN=FILE      CIFAR-10N's labels (CIFAR-10_human.npy or .pt, or a CSV): adds the row 'human worst'
# KEEP=1          leaves the runs' artifacts without pictures in OUT/mlruns.tgz
# UNPACK=SCRIPT   where only a small file could be carried there: `python3 SCRIPT IMAGES.npz --source SMALL [--classes ...]`
#                 makes the arrays of it first, and IMAGES.npz is SMALL
# WHEELS=DIR      where nothing can be downloaded: what is missing is installed from the wheels in DIR first, nlt's own
#                 among them (`pip wheel --no-deps -w DIR .`)
set -euo pipefail
which=$1 data=$2 out=${3:-gpu_benchmark}
shift $(($# < 3 ? $# : 3))
mkdir -p "$out"
export MLFLOW_DISABLE_TELEMETRY=true PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
store=$(realpath -m "${STORE:-mlruns}")
mkdir -p "$store"
if [ -n "${WHEELS:-}" ]; then
    [ -d "$store/site" ] || python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$store/site" "$WHEELS"/*.whl
    export PYTHONPATH=$PYTHONPATH:$store/site  # this checkout before its wheel
fi
if [ -n "${UNPACK:-}" ]; then
    classes=()
    [ "$which" = cifar10 ] || classes=(--classes cat dog horse deer)
    [ -f "$store/$which.npz" ] || python3 "$UNPACK" "$store/$which.npz" --source "$data" "${classes[@]}"
    data=$store/$which.npz
fi
[ -f "$out/benchmark.jsonl" ] || cp docs/benchmark.jsonl "$out/benchmark.jsonl" 2>/dev/null || true
status=0
timeout --signal TERM --kill-after 60 "${MINUTES:-9}m" python3 docs/benchmark.py run "$which" --device "${DEVICE:-cuda}" \
    --data "{\"name\": \"npz\", \"path\": \"$data\"}" ${HUMAN:+--human "$HUMAN"} --data-root "$store/data" \
    --tracking-uri "sqlite:///$store/mlflow.db" --results "$out/benchmark.jsonl" --page "$out/benchmark.md" "$@" \
    2>&1 | tee "$out/log.txt" || status=$?
wc -l "$out/benchmark.jsonl"
if [ -n "${KEEP:-}" ]; then
    tar -C "$store" --exclude=images --exclude=site --exclude=data --exclude='*.npz' -czf "$out/mlruns.tgz" artifacts mlflow.db
fi
exit "$status"
