#!/usr/bin/env bash
# Makes runs at the published sizes, and the tables of seeds; interrupted, it goes on within the epoch that it was in.
#
# Usage: benchmarks/published.sh DATA_DIR RUNS_DIR NAME...
#
# NAME is a run, or a group of runs in the order in which they are worth most:
#
#   table      the stacked LSTM of 2x1500 units, 100 epochs: selfish, dense, static, then every other method, then
#              two more seeds of selfish
#   better     variants of selfish for 20 epochs, of which the best is to be run to its end
#   others     RHN and ON-LSTM, as many epochs as EPOCHS says (default 100), and the AWD-LSTM with a mixture of softmaxes
#              for 40: selfish, dense, static
#   seeds_256  2x256 units, 8 epochs, seeds 1 to 5 of seven methods
#   seeds_128  the same of 2x128 units, for a CPU
#
# Environment:
#   TIME_LIMIT     seconds that all of it may take; what is not finished then goes on when the script is started again,
#                  also on another machine (python -m trainers.pack). The exit status is then 75.
#   PARALLEL       runs at a time (default 1). On one GPU, start CUDA's multi-process service first:
#                  nvidia-cuda-mps-control -d
#   TRAINER_FLAGS  further flags of every run: TRAINER_FLAGS="--units=16 --epochs=1" tries it all out.
#   KERAS_BACKEND  jax or tensorflow (the default)
#
# At its end RUNS_DIR/tables has runs.csv and each run's history, of which `python -m benchmarks.run_table` makes tables.
set -euo pipefail
data_dir=$1 runs_dir=$2
shift 2
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")"
cd "$(dirname "$here")/.."
export XLA_PYTHON_CLIENT_PREALLOCATE=false

lstm="--preset=ptb_lstm"
declare -A flags groups
add() { # GROUP NAME FLAGS...
    flags[$2]="${*:3}"
    groups[$1]+=" $2"
}

for method in selfish dense static rigl set snfs dsr dense_small gmp gse snip; do
    add table "published_lstm_${method}_1111" $lstm --seed=1111 --method=$method
done
for seed in 2 3; do
    add table published_lstm_selfish_$seed $lstm --seed=$seed
done

short="$lstm --seed=1111 --epochs=20"
add better better_as_published $short
for rate in 0.5 0.6 0.7 0.9; do
    add better better_rate_${rate#0.} $short --pruning_rate=$rate
done
add better better_erk $short --distribution=erk
add better better_erdos_renyi $short --distribution=erdos_renyi
for steps in 200 500 3000; do
    add better better_each_${steps}_steps $short --rewiring_steps=$steps
done
add better better_guided $short --method=gse
add better better_gradient_growth $short --grow=gradient
add better better_magnitude_and_gradient $short --drop=magnitude_and_gradient
add better better_sensitivity $short --drop=sensitivity
add better better_reset_regrown $short --reset_regrown
add better better_bfloat16 $short --precision=mixed_bfloat16

for method in selfish dense static; do
    add others published_rhn_${method}_1111 --preset=ptb_rhn --seed=1111 --method=$method --epochs=${EPOCHS:-100}
    add others published_onlstm_${method}_1111 --preset=ptb_onlstm --seed=1111 --method=$method \
        --epochs=${EPOCHS:-100}
    add others published_mos_${method}_1111 --preset=wt2_awd_lstm_mos --seed=1111 --method=$method --epochs=40
done

for units in 256 128; do
    for seed in 1 2 3 4 5; do
        for method in selfish set static rigl dense dsr gse; do
            add seeds_$units lstm_${units}_${method}_$seed $lstm --units=$units --dropout=0.25 --patience=2 --epochs=8 \
                --seed=$seed --method=$method
        done
    done
done

names=()
for name in "$@"; do
    if [ -n "${groups[$name]:-}" ]; then
        names+=(${groups[$name]})
    elif [ -n "${flags[$name]:-}" ]; then
        names+=("$name")
    else
        echo "unknown run $name; known: ${!groups[*]}, and in them:${groups[*]}" >&2
        exit 1
    fi
done
[ ${#names[@]} -gt 0 ] || { echo "name a run or a group: ${!groups[*]}" >&2; exit 1; }

# Each run has what is left of the time, less the tests after its training.
margin=45
left() { echo $((DEADLINE - $(date +%s) - margin)); }
if [ -n "${TIME_LIMIT:-}" ] && [ -z "${DEADLINE:-}" ]; then
    export DEADLINE=$(($(date +%s) + TIME_LIMIT))
fi

if [ "${PARALLEL:-1}" -gt 1 ]; then
    status=0
    printf '%s\n' "${names[@]}" | CHILD=1 PARALLEL=1 xargs -n 1 -P "$PARALLEL" "$here" "$data_dir" "$runs_dir" || status=$?
    if [ $status -ne 0 ]; then # xargs makes 123 of whatever the runs ended with, and have said
        status=1
        [ -n "${DEADLINE:-}" ] && [ "$(left)" -le 0 ] && status=75
    fi
else
    status=0
    for name in "${names[@]}"; do
        [ -e "$runs_dir/$name/results.json" ] && continue
        limit=()
        if [ -n "${DEADLINE:-}" ]; then
            if [ "$(left)" -le 0 ]; then
                status=75
                break
            fi
            limit=("--time_limit=$(left)")
        fi
        python -m trainers.language_model --dataset=ptb --data_dir="$data_dir" --workdir="$runs_dir/$name" \
            --noexport ${flags[$name]} "${limit[@]}" ${TRAINER_FLAGS:-} || status=$?
        [ $status -eq 0 ] || break
    done
fi
if [ -z "${CHILD:-}" ] && compgen -G "$runs_dir/*/results.json" > /dev/null; then
    python -m benchmarks.run_table "$runs_dir" --output "$runs_dir/tables"
fi
exit $status
