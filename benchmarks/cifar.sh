#!/usr/bin/env bash
# Makes every run of the large networks on CIFAR-10 that is not there yet; interrupted, it goes on where it stopped.
#
# Usage: benchmarks/cifar.sh DATA_DIR RUNS_DIR [NETWORK...]     (mobilenet resnet_18 vgg_16 resnet_34 by default)
#
# DATA_DIR may be an .npz file. Each network at full width, switched and dense: it shows that they work. EPOCHS
# (default 3) of training, and one more with a fixed structure.
set -euo pipefail
data_dir=$1 runs_dir=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# VGG-16 learns little in a few hundred steps, hence more and smaller ones.
declare -A flags=([vgg_16]="--batch_size=32 --learning_rate=3e-4")

for network in ${*:-mobilenet resnet_18 vgg_16 resnet_34}; do
    for method in switcher dense; do
        [ -e "$runs_dir/$network-$method/results.json" ] && continue
        python -m trainers.image_classifier --network="$network" --dataset=cifar10 --data_dir="$data_dir" \
            --method="$method" --sparsity=0.9 --epochs="${EPOCHS:-3}" --finetune_epochs=1 --validation_fraction=0 \
            --task_steps=10 --switcher_steps=2 --warmup_epochs=0.5 --noexport --workdir="$runs_dir/$network-$method" \
            ${flags[$network]:---batch_size=64 --learning_rate=5e-4}
    done
done
