#!/usr/bin/env bash
# On a machine with a GPU, in one call: what docs/performance.md lacks. The gpu tests; `nlt bench` plain and compiled; the cost
# of record keeping; a profile of a step; four seeds one after another and at once; the eight cells of Table 1 at full
# scale, timed.
#   docs/gpu_bench.sh CIFAR4.npz [OUT]   CIFAR4.npz: train_images, train_labels, test_images, test_labels, class_names
# Leaves OUT/*.txt, OUT/*.json and the runs' artifacts without pictures in OUT/mlruns.tgz. UNPACK and WHEELS as in gpu_o2u.sh.
set -eu
data=$1 out=${2:-gpu_bench}
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
set_data="data={\"name\": \"npz\", \"path\": \"$data\"}"
nvidia-smi | tee "$out/device.txt"
python3 -m pytest -q -m gpu 2>&1 | tee "$out/gpu_tests.txt" || true
for compile in off on; do
    python3 -m nlt.cli bench --device cuda --compile "$compile" > "$out/bench_$compile.txt" || true
    cat "$out/bench_$compile.txt"
    tail -n 1 "$out/bench_$compile.txt" > "$out/bench_$compile.json"
done
python3 docs/bench_logging.py --device cuda | tee "$out/logging.txt"
for batch in 128 16; do
    python3 docs/profile_step.py --device cuda --batch "$batch" | tee "$out/profile_$batch.txt"
done

# Table 1: eight cells, one after another, evaluation and tracking included; O2U and O2U & APL share their stages up to the
# mask. Goal: 180 s.
uri=sqlite:///$work/store/mlflow.db
began=$(date +%s)
python3 -m nlt.cli launch experiments/{base,apl,o2u,o2u_apl}_{20,60}.json --device cuda --tracking-uri "$uri" \
    --set "$set_data" | tee "$out/log.txt"
echo "eight cells: $(($(date +%s) - began)) s" | tee "$out/table1_seconds.txt"
python3 -m nlt.cli compare --tracking-uri "$uri" | tee "$out/table.txt"
tar -C "$work/store" --exclude=images -czf "$out/mlruns.tgz" .

# Four seeds of a small network: one after another, then four processes on one GPU.
small="experiments/base_20.json --device cuda --set model.width=0.25 --set method.training.epochs=20"
began=$(date +%s)
python3 -m nlt.cli launch $small --seed 0 --seed 1 --seed 2 --seed 3 --tracking-uri "sqlite:///$work/one/mlflow.db" --set "$set_data"
echo "four seeds in turn: $(($(date +%s) - began)) s" | tee "$out/seeds.txt"
began=$(date +%s)
python3 -m nlt.cli launch $small --seed 0 --seed 1 --seed 2 --seed 3 --jobs 4 --tracking-uri "sqlite:///$work/four/mlflow.db" --set "$set_data"
echo "four seeds at once: $(($(date +%s) - began)) s" | tee -a "$out/seeds.txt"
