#!/usr/bin/env bash
# Makes every Penn Treebank run of docs/results.md that is not there yet; interrupted, it goes on where it stopped.
#
# Usage: benchmarks/penn_treebank.sh DATA_DIR RUNS_DIR [NAME...]     (all runs, or those named)
#
# published_dense, published_static and published_selfish, the preset's 2x1500 units for 20 epochs, are made
# where they are named only: an epoch takes half an hour on two cores, and 16 to 18 seconds on an NVIDIA H100.
#
# A run takes 14 epochs of about two minutes on two cores (--precision=mixed_bfloat16 less). With more cores,
# name different runs in different shells; averaging and no_averaging begin with second_1111, so make that
# one first. On a GPU, with JAX, twelve runs side by side:
#
#   export KERAS_BACKEND=jax XLA_PYTHON_CLIENT_PREALLOCATE=false
#   echo NAME... | xargs -n 1 -P 12 benchmarks/penn_treebank.sh DATA_DIR RUNS_DIR
#
# TRAINER_FLAGS, if set, are further flags of every run: TRAINER_FLAGS=--units=16 tries it all out.
set -euo pipefail
data_dir=$1 runs_dir=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lstm="--preset=ptb_lstm --units=256"
first="$lstm --dropout=0.25 --patience=2 --epochs=14"
eight="$lstm --dropout=0.25 --patience=2 --epochs=8"
second="$lstm --dropout=0 --learning_rate=20 --pruning_rate=0.5 --patience=1"
lengths="--preset=ptb_lstm --units=128 --bptt=70 --dropout=0 --learning_rate=30 --pruning_rate=0.5 --patience=1"
lengths="$lengths --random_lengths --seed=2"
declare -A flags=(
    [selfish_1111]="$first --seed=1111"
    [selfish_2]="$first --seed=2"
    [two_vectors_1111]="$first --seed=1111 --bias_vectors=2"
    [two_vectors_2]="$first --seed=2 --bias_vectors=2"
    [static]="$first --seed=1111 --method=static"
    [dense]="$first --seed=1111 --method=dense"
    [mixed_bfloat16]="$first --seed=1111 --precision=mixed_bfloat16"
    [second_1111]="$second --seed=1111 --epochs=10"
    [second_2]="$second --seed=2 --epochs=10"
    [averaging]="$second --seed=1111"
    [no_averaging]="$second --seed=1111 --noaveraging"
    [averaged_rate_current]="$lengths --averaged_rate=current"
    [averaged_rate_first]="$lengths --averaged_rate=first"
    [dense_norm]="$lstm --dropout=0.25 --patience=2 --epochs=6 --seed=1111"
    [active_norm]="$lstm --dropout=0.25 --patience=2 --epochs=6 --seed=1111 --clip_norm_of=active"
    [reset_regrown]="$first --seed=1111 --reset_regrown"
    [reset_regrown_8]="$eight --seed=1111 --reset_regrown"
    [reset_regrown_8_2]="$eight --seed=2 --reset_regrown"
    [blocks_4_1]="$eight --seed=1111 --block_shape=4,1 --sparsity=0.5"
    [blocks_1_1]="$eight --seed=1111 --sparsity=0.5"
    [two_of_four]="$eight --seed=1111 --n_of_m=2,4"
)
for method in dense dense_small static selfish set dsr snfs rigl gse gmp snip; do
    flags[method_$method]="$eight --seed=1111 --method=$method"
done
for method in dense dense_small static selfish; do
    flags[method_${method}_2]="$eight --seed=2 --method=$method"
done
for method in dense static selfish; do
    flags[published_$method]="--preset=ptb_lstm --epochs=20 --seed=1111 --method=$method"
done
small=""
for preset in ptb_rhn ptb_onlstm wt2_awd_lstm wt2_awd_lstm_mos; do
    for method in dense static selfish; do
        flags[${preset}_$method]="--preset=${preset}_small --epochs=8 --seed=1111 --method=$method"
        small="$small ${preset}_$method"
    done
done
order="selfish_1111 selfish_2 two_vectors_1111 two_vectors_2 static dense mixed_bfloat16 second_1111 second_2 averaging no_averaging
    dense_norm active_norm reset_regrown reset_regrown_8 reset_regrown_8_2
    method_dense method_dense_small method_static method_selfish method_set method_dsr method_snfs method_rigl
    method_gse method_gmp method_snip method_dense_2 method_dense_small_2 method_static_2 method_selfish_2
    blocks_1_1 blocks_4_1 two_of_four$small"

train() {
    python -m trainers.language_model --dataset=ptb --data_dir="$data_dir" --workdir="$runs_dir/$1" \
        --noexport "${@:2}" ${TRAINER_FLAGS:-}
}

# Begins a run as a copy of the finished run second_1111, which differs at most in that it averages; not if it
# is to be without averaging and second_1111 has begun to average.
copy_second_1111() {
    TF_CPP_MIN_LOG_LEVEL=2 python - "$runs_dir" "$1" <<'PYTHON'
import csv
import json
import pathlib
import shutil
import sys

import numpy as np

from keras_selfish.optimizers.averaging import triggers
from trainers.files import write_json

runs, name = pathlib.Path(sys.argv[1]), sys.argv[2]
source, partial = runs / "second_1111", runs / f".partial-{name}"
settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
if name == "no_averaging":
    settings["averaging"] = False
    with (source / "history.csv").open(newline="", encoding="utf-8") as file:
        values = np.array([row["val_perplexity"] for row in csv.DictReader(file)], "float32")
    for epoch, value in enumerate(values, 1):
        if triggers(values[: epoch - 1], value, settings["patience"]):
            print(f"{name} is trained from its beginning: second_1111 averages since epoch {epoch}")
            sys.exit()
if partial.exists():  # left by a kill
    shutil.rmtree(partial)
shutil.copytree(source, partial)
write_json(partial / "config.json", settings)
partial.rename(runs / name)
print(f"{name} begins as a copy of second_1111")
PYTHON
}

make_run() {
    case $1 in
    averaging | no_averaging)
        if [ ! -e "$runs_dir/$1" ]; then
            make_run second_1111
            copy_second_1111 "$1"
        fi
        # Ten epochs with their own schedule, then on to 25 at its end rate.
        grep -qs '"schedule_epochs": 10\b' "$runs_dir/$1/config.json" || train "$1" ${flags[$1]} --epochs=10
        train "$1" ${flags[$1]} --epochs=25
        ;;
    averaged_rate_*)
        # Twelve epochs with their own schedule, then on to 16 at its end rate.
        grep -qs '"schedule_epochs": 12\b' "$runs_dir/$1/config.json" || train "$1" ${flags[$1]} --epochs=12
        train "$1" ${flags[$1]} --epochs=16
        ;;
    *) [ -e "$runs_dir/$1/results.json" ] || train "$1" ${flags[$1]} ;;
    esac
}

for name in ${*:-$order}; do
    [ -n "${flags[$name]:-}" ] || { echo "unknown run $name; known:" $order >&2; exit 1; }
    make_run "$name"
done
