"""What one training step costs: ours with and without masks, plain Keras, and PyTorch.

Usage:
    python -m benchmarks.training_step [--units 1500] [--variants sparse,torch] [--output FOLDER]

All variants run alternately, each time in a process of its own, and so does the measurement of the
machine's matrix peak in the types that they multiply in. All train a stacked LSTM language model with
dropout on random tokens, with SGD, clipping by the global norm and weight decay:

    sparse          ours, float32, all matrices masked at sparsity 0.67
    unmasked        ours, float32, no masks
    averaging       as sparse, with SNT-ASGD averaging the weights
    bfloat16        as sparse, in mixed_bfloat16
    keras           keras.layers.LSTM and keras.optimizers.SGD, float32, no masks, no state carried over
    torch           PyTorch, float32, masks multiplied into the weights after each update
    torch_bfloat16  as torch, in autocast

PyTorch comes with the extra `bench`; without it, its two variants are left out, and without a GPU or AVX-512
torch_bfloat16 is, for its LSTM needs one. A step's time is the median over rounds of the median over steps;
"x keras" is that time over the time of `keras`. TFLOP/s count the matrix products of a dense model (see
`Sizes.operations`), masked or not. Memory is that of the host. With KERAS_BACKEND=jax, Keras's variants run
on JAX. On a GPU, float32 products are of TensorFloat-32 precision.
"""

import dataclasses
import importlib.util
import json
import os

from benchmarks.options import make_parser, names_among, parse, positive, sizes_of
from benchmarks.output import draw_bars, print_table, write_figures
from benchmarks.processes import alternate, extremes, machine, median

VARIANTS = ("sparse", "unmasked", "averaging", "bfloat16", "keras", "torch", "torch_bfloat16")
PEERS = ("unmasked", "keras", "torch", "torch_bfloat16")
LINES = {"float32": "--", "bfloat16": ":"}  # of each type's matrix peak, as it is drawn
MODULE = "benchmarks.training_step"  # `__name__` is "__main__" here


def command(variant, sizes, steps):
    """The command that measures one variant, for `alternate`."""
    return [MODULE, f"--variant={variant}", f"--steps={steps}", *sizes.flags()]


def measure(variant, sizes, steps):
    # A process loads only the library that it measures.
    if variant.startswith("torch"):
        from benchmarks import torch_step as library
    else:
        if variant != "keras":  # as the trainers do; a peer is measured with what its users get by default
            os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        from benchmarks import keras_step as library
    return library.measure(variant, sizes, steps)


def available(variants):
    """Those of the variants that can run here."""
    if importlib.util.find_spec("torch") is None:
        left_out = [variant for variant in variants if variant.startswith("torch")]
        reason = "for PyTorch is not installed: {}; it is in the extra `bench`"
    elif "torch_bfloat16" in variants and not torch_has_bfloat16():
        left_out, reason = ["torch_bfloat16"], "for PyTorch's LSTM wants AVX-512 for it: {}"
    else:
        return variants
    if left_out:
        print(f"Left out, {reason.format(', '.join(left_out))}.")
    return [variant for variant in variants if variant not in left_out]


def torch_has_bfloat16():
    """Whether PyTorch's LSTM runs in bfloat16 here."""
    import torch

    return torch.cuda.is_available() or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def summarise(results, sizes):
    """One dict of figures per variant, from the results of all rounds."""
    variants = [name for name in VARIANTS if name in results]
    steps = {variant: median(results[variant], "step") for variant in variants}
    rows = []
    for variant in variants:
        step = steps[variant]
        least, largest = extremes(results[variant], "step")
        dtype = dtype_of(variant)
        rows.append(
            {
                "variant": variant,
                "step_seconds": step,
                "step_seconds_least": least,
                "step_seconds_largest": largest,
                **{f"times_{peer}": step / steps[peer] if peer in steps else "" for peer in PEERS},
                "tokens_per_second": sizes.tokens / step,
                "teraflops": sizes.operations / step / 1e12,
                "peak_dtype": dtype,
                "peak_teraflops": peak(results, dtype) / 1e12,
                "first_step_seconds": median(results[variant], "first"),
                "peak_memory_bytes": median(results[variant], "memory"),
            }
        )
    return rows


def dtype_of(variant):
    """The type in which a variant multiplies matrices."""
    return "bfloat16" if variant.endswith("bfloat16") else "float32"


def peak(results, dtype):
    """Operations per second of the fastest matrix products of all rounds."""
    return extremes(results[f"matrix peak, {dtype}"], "operations_per_second")[1]


def print_figures(rows):
    peers = [peer for peer in PEERS if rows[0][f"times_{peer}"] != ""]
    header = ["variant", "step ms", *(f"x {peer}" for peer in peers), "tokens/s", "TFLOP/s", "of peak"]
    print_table(
        [*header, "first step s", "peak MB"],
        [
            [
                row["variant"],
                f"{1000 * row['step_seconds']:.1f}",
                *(f"{row[f'times_{peer}']:.3f}" for peer in peers),
                f"{row['tokens_per_second']:.0f}",
                f"{row['teraflops']:.3f}",
                f"{row['teraflops'] / row['peak_teraflops']:.0%}",
                f"{row['first_step_seconds']:.2f}",
                f"{row['peak_memory_bytes'] / 1e6:.0f}",
            ]
            for row in rows
        ],
    )


def drawing(rows, peaks, sizes):
    """The function that draws the figures."""

    def draw(figure):
        names = [row["variant"] for row in rows]
        left, right = figure.subplots(1, 2, sharey=True)
        draw_bars(
            left,
            names,
            [1000 * row["step_seconds"] for row in rows],
            [(1000 * row["step_seconds_least"], 1000 * row["step_seconds_largest"]) for row in rows],
        )
        left.set_xlabel("ms per training step (median; least and largest round)")
        draw_bars(right, names, [row["teraflops"] for row in rows])
        for dtype, value in peaks.items():
            label = f"matrix peak, {dtype}: {value / 1e12:.3g}"
            right.axvline(value / 1e12, color="0.3", linestyle=LINES[dtype], label=label)
        right.set_xlabel("TFLOP/s of the dense model's matrix products")
        right.legend(fontsize="small", loc="lower right")
        figure.suptitle(f"One training step: {sizes}")

    return draw


def main():
    parser = make_parser(__doc__, steps=20)
    parser.add_argument(
        "--variants",
        type=names_among(VARIANTS),
        default=",".join(VARIANTS),
        metavar="A,B",
        help="which to measure (default: all)",
    )
    parser.add_argument(
        "--peak_size",
        type=positive,
        default=3072,
        help="rows and columns of the matrices that measure the peak (default: %(default)s)",
    )
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        help="measure this one in this process, and print nothing but one JSON object",
    )
    options = parse(parser)
    sizes = sizes_of(options)
    if options.variant:
        print(json.dumps(measure(options.variant, sizes, options.steps)))
        return
    variants = available(options.variants)
    if not variants:
        parser.exit(1, "error: nothing is left to measure\n")
    where = machine()
    commands = {variant: command(variant, sizes, options.steps) for variant in variants}
    dtypes = [dtype for dtype in LINES if dtype in map(dtype_of, variants)]
    for dtype in dtypes:
        commands[f"matrix peak, {dtype}"] = [
            "benchmarks.matrix_peak",
            f"--dtype={dtype}",
            f"--size={options.peak_size}",
        ]
    results = alternate(commands, options.rounds)
    rows = summarise(results, sizes)
    peaks = {dtype: peak(results, dtype) for dtype in dtypes}
    print(where)
    print(f"{sizes}; {options.steps} steps, {options.rounds} rounds")
    print(f"{sizes.operations / 1e12:.4g} TFLOP a step", end="; ")
    print(
        "; ".join(f"matrix peak, {dtype}: {of_dtype / 1e12:.3f} TFLOP/s" for dtype, of_dtype in peaks.items())
        + "\n"
    )
    print_figures(rows)
    settings = {**dataclasses.asdict(sizes), "steps": options.steps, "rounds": options.rounds}
    rows = [{**row, **settings, "machine": where} for row in rows]
    size = (11, 1.6 + 0.5 * len(rows))
    write_figures(options.output, "training_step", rows, size, drawing(rows, peaks, sizes))


if __name__ == "__main__":
    main()
