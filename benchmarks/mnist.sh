#!/usr/bin/env bash
# Makes every MNIST run of docs/results.md that is not there yet; interrupted, it goes on where it stopped.
#
# Usage: benchmarks/mnist.sh DATA_DIR RUNS_DIR [PART...]     (targets, against_gmp, curve, variants, erk;
#        all by default)
#
# `python -m benchmarks.accuracy_table RUNS_DIR` makes the tables, a CSV and a plot of them.
set -euo pipefail
data_dir=$1 runs_dir=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# NETWORK METHOD SPARSITY SEED EPOCHS [FLAG]: two epochs of fine-tuning with a fixed structure follow.
train() {
    local name=$1-$2-$3-seed$4${6:+-${6#*=}}
    [ -e "$runs_dir/$name/results.json" ] && return
    python -m trainers.image_classifier --network="$1" --dataset=mnist --data_dir="$data_dir" --method="$2" \
        --sparsity="$3" --seed="$4" --epochs="$5" --finetune_epochs=2 --validation_fraction=0 --noexport \
        --workdir="$runs_dir/$name" "${@:6}"
}

targets() {
    for seed in 0 1 2; do
        train lenet_300_100 switcher 0.92 $seed 22
        train lenet_5 switcher 0.96 $seed 12
    done
}

against_gmp() {
    for sparsity in 0.90 0.95 0.98; do
        for seed in 0 1 2; do
            for method in switcher gmp; do train lenet_300_100 $method $sparsity $seed 22; done
        done
    done
}

curve() {
    for sparsity in 0.50 0.80 0.90 0.95 0.98 0.99; do
        for method in switcher gmp selfish set rigl static; do train lenet_300_100 $method $sparsity 0 22; done
    done
    train lenet_300_100 dense 0.50 0 22
}

# Other switchers, and the loss alone.
variants() {
    for architecture in attention convolution weight; do
        train lenet_300_100 switcher 0.95 0 22 --architecture=$architecture
    done
    train lenet_300_100 switcher 0.95 0 22 --estimator=hard_concrete
    train lenet_300_100 switcher -1 0 22
}

# More of the connections for small matrices.
erk() {
    for sparsity in 0.95 0.98 0.99; do
        for method in selfish set rigl static; do
            train lenet_300_100 $method $sparsity 0 22 --distribution=erk
        done
    done
}

parts="targets against_gmp curve variants erk"
for part in ${*:-$parts}; do
    case " $parts " in
    *" $part "*) $part ;;
    *) echo "unknown part $part; known: $parts" >&2 && exit 1 ;;
    esac
done
