#!/usr/bin/env bash
# Makes every run of the large networks on CIFAR-10 that is not there yet; interrupted, it goes on where it stopped.
#
# Usage: benchmarks/cifar.sh DATA_DIR RUNS_DIR [NAME...]     (all runs, or those named)
#
# DATA_DIR may be an .npz file. A run is NETWORK_METHOD_SEED, such as resnet_18_switcher_0: at full width, 90% of
# the dense layers' connections gone but for the method dense, 60 epochs and 2 with a fixed structure, images
# cropped and mirrored at random. Seed 0 of all comes first. `python -m benchmarks.accuracy_table RUNS_DIR` makes
# the table.
#
# It wants a GPU; with JAX, four runs side by side:
#
#   export KERAS_BACKEND=jax XLA_PYTHON_CLIENT_PREALLOCATE=false
#   echo NAME... | xargs -n 1 -P 4 benchmarks/cifar.sh DATA_DIR RUNS_DIR
#
# The name of a network alone is two short runs, NETWORK-switcher and NETWORK-dense, that show on a CPU that it
# works: EPOCHS (default 3) and one with a fixed structure, without augmentation.
#
# TRAINER_FLAGS, if set, are further flags of every run: TRAINER_FLAGS="--width=0.1 --epochs=1" tries it all out.
set -euo pipefail
data_dir=$1 runs_dir=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

networks="resnet_18 mobilenet vgg_16 resnet_34"
declare -A common
for network in $networks; do common[$network]="--network=$network --batch_size=64 --learning_rate=5e-4"; done
# It learns little in a few hundred steps, hence more and smaller ones.
common[vgg_16]="--network=vgg_16 --batch_size=32 --learning_rate=3e-4"
long="--epochs=60 --finetune_epochs=2 --augmentation=crop_flip"
short="--epochs=${EPOCHS:-3} --finetune_epochs=1 --task_steps=10 --switcher_steps=2 --warmup_epochs=0.5"

declare -A flags
order=""
for network in $networks; do
    for method in switcher dense; do flags[$network-$method]="${common[$network]} --method=$method $short"; done
done
for seed in 0 1 2; do
    for network in $networks; do
        for method in dense gmp switcher; do
            name=${network}_${method}_$seed
            flags[$name]="${common[$network]} --method=$method $long --seed=$seed"
            order="$order $name"
        done
    done
done

names=""
for name in ${*:-$order}; do
    case " $networks " in
    *" $name "*) names="$names $name-switcher $name-dense" ;;
    *)
        [ -n "${flags[$name]:-}" ] || { echo "unknown run $name; known: $networks$order" >&2; exit 1; }
        names="$names $name"
        ;;
    esac
done

for name in $names; do
    if [ -e "$runs_dir/$name/results.json" ]; then
        echo "$name is finished"
        continue
    fi
    python -m trainers.image_classifier --dataset=cifar10 --data_dir="$data_dir" --sparsity=0.9 \
        --validation_fraction=0 --noexport --workdir="$runs_dir/$name" ${flags[$name]} ${TRAINER_FLAGS:-}
done
