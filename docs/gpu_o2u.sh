#!/usr/bin/env bash
# On a machine with a GPU, in one call: the gpu tests, then O2U at 20 % noise at full scale in both profiles beside the
# paper's numbers (test accuracy 79.6, noise accuracy 76.1). Minutes on a data-centre GPU.
#   docs/gpu_o2u.sh CIFAR4.npz [OUT]     CIFAR4.npz: train_images, train_labels, test_images, test_labels, class_names
# Leaves OUT/gpu_tests.txt, OUT/log.txt, OUT/table.txt and the runs' artifacts without pictures in OUT/mlruns.tgz.
#
# UNPACK=SCRIPT   where only a small file could be carried there: `python3 SCRIPT CIFAR4.npz --source SMALL --classes ...`
#                 makes the arrays of it first, and the first argument is SMALL
# WHEELS=DIR      where nothing can be downloaded: what is missing is installed from the wheels in DIR first, nlt's own
#                 among them (`pip wheel --no-deps -w DIR .`)
set -eu
data=$1 out=${2:-gpu_o2u}
mkdir -p "$out"
export MLFLOW_DISABLE_TELEMETRY=true PYTHONUNBUFFERED=1
work=$(mktemp -d)
if [ -n "${WHEELS:-}" ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$work/site" "$WHEELS"/*.whl
    export PYTHONPATH=$PWD:$work/site  # this checkout before its wheel
fi
if [ -n "${UNPACK:-}" ]; then
    python3 "$UNPACK" "$work/cifar4.npz" --source "$data" --classes cat dog horse deer
    data=$work/cifar4.npz
fi
python3 -m pytest -q -m gpu 2>&1 | tee "$out/gpu_tests.txt" || true
uri=sqlite:///$work/store/mlflow.db
python3 -m nlt.cli launch experiments/o2u_20.json experiments/as_published/o2u_20.json --device cuda \
    --tracking-uri "$uri" --set "data={\"name\": \"npz\", \"path\": \"$data\"}" | tee "$out/log.txt"
python3 -m nlt.cli compare --tracking-uri "$uri" | tee "$out/table.txt"
tar -C "$work/store" --exclude=images -czf "$out/mlruns.tgz" .
