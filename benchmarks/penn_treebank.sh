#!/usr/bin/env bash
# Makes every Penn Treebank run of docs/results.md that is not there yet; interrupted, it goes on where it stopped.
#
# Usage: benchmarks/penn_treebank.sh DATA_DIR RUNS_DIR [NAME...]     (all runs, or those named)
#
# A run takes 14 epochs of about two minutes on two cores (--precision=mixed_bfloat16 less). With more cores,
# name different runs in different shells.
set -euo pipefail
data_dir=$1 runs_dir=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

first="--dropout=0.25 --patience=2 --epochs=14"
second="--dropout=0 --learning_rate=20 --pruning_rate=0.5 --patience=1"
declare -A flags=(
    [selfish_1111]="$first --seed=1111"
    [selfish_2]="$first --seed=2"
    [static]="$first --seed=1111 --method=static"
    [dense]="$first --seed=1111 --method=dense"
    [mixed_bfloat16]="$first --seed=1111 --precision=mixed_bfloat16"
    [dense_norm]="--dropout=0.25 --patience=2 --epochs=6 --seed=1111"
    [active_norm]="--dropout=0.25 --patience=2 --epochs=6 --seed=1111 --clip_norm_of=active"
    [reset_regrown]="--dropout=0.25 --patience=2 --epochs=6 --seed=1111 --reset_regrown"
    [averaging]="$second --seed=1111"
    [no_averaging]="$second --seed=1111 --noaveraging"
)
order="selfish_1111 selfish_2 static dense mixed_bfloat16 averaging no_averaging dense_norm active_norm reset_regrown"

train() {
    python -m trainers.language_model --dataset=ptb --data_dir="$data_dir" --preset=ptb_lstm --units=256 \
        --workdir="$runs_dir/$1" --noexport "${@:2}"
}

for name in ${*:-$order}; do
    [ -n "${flags[$name]:-}" ] || { echo "unknown run $name; known: $order" >&2; exit 1; }
    case $name in
    averaging | no_averaging)
        # Ten epochs with their own schedule, then on to 25 at its end rate.
        grep -qs '"epochs": 25' "$runs_dir/$name/config.json" || train "$name" ${flags[$name]} --epochs=10
        train "$name" ${flags[$name]} --epochs=25
        ;;
    *) train "$name" ${flags[$name]} ;;
    esac
done
