#!/usr/bin/env bash
# Every figure of a GPU in docs/results.md, the tests that need one, and a short training, in under 8 minutes.
#
# Usage: benchmarks/gpu.sh OUTPUT_DIR [DATA_DIR]      (DATA_DIR: the Penn Treebank, for a whole epoch of ptb_lstm)
#
# It needs JAX with CUDA and, to compare with, PyTorch. OUTPUT_DIR gets report.txt and a CSV file of each table.
# What fails is said in the report, and the rest goes on.
set -uo pipefail
output=$1 data_dir=${2:-}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$output"
export KERAS_BACKEND=jax CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}" XLA_PYTHON_CLIENT_PREALLOCATE=false

part() {
    echo "== $1 ($SECONDS s)"
    shift
    timeout 150 "$@" 2> >(tail -n 15 >&2) || echo "FAILED with exit status $?: $*"
}

{
    part "tests" python -m pytest -q -p no:cacheprovider -m gpu tests/test_gpu.py
    for units in 1500 650 256; do
        part "training step, 2x$units" python -m benchmarks.training_step --units="$units" --steps=60 --rounds=1 \
            --variants=sparse,unmasked,bfloat16,torch,torch_bfloat16 --output="$output/training_step_$units"
        part "LSTM with cuDNN and without, $units units" python -m benchmarks.cells --units="$units" \
            --cells=lstm,lstm_cudnn --rounds=1 --output="$output/cudnn_$units"
    done
    part "RHN, 830 units" python -m benchmarks.cells --units=830 --cells=rhn --rounds=1 --output="$output/rhn"
    part "ON-LSTM, 1150 units" python -m benchmarks.cells --units=1150 --cells=on_lstm --rounds=1 \
        --output="$output/on_lstm"
    part "a time step as one kernel" python -m benchmarks.fused_step --output="$output/fused_step"
    part "rewiring" python -m benchmarks.rewiring --rounds=3 --output="$output/rewiring"
    part "a short training with rewiring and averaging" python -m trainers.language_model --preset=quick \
        --epochs=6 --patience=1 --noexport --workdir="$output/quick"
    if [[ -n $data_dir ]]; then
        part "two epochs of ptb_lstm in mixed_bfloat16" python -m trainers.language_model --dataset=ptb \
            --data_dir="$data_dir" --preset=ptb_lstm --epochs=2 --precision=mixed_bfloat16 --noexport \
            --workdir="$output/ptb_lstm"
    fi
    echo "== done ($SECONDS s)"
} > >(tee "$output/report.txt") 2>&1
