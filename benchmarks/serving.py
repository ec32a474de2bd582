"""What a token costs in each exported format: time, bytes, memory; against dense models and other runtimes.

Usage: python -m benchmarks.serving [--units 656,1504] [--sparsities 0.67,0.9] [--variants NAMES]
           [--output FOLDER]

Language models of two LSTM layers with random weights are exported, then all files run alternately, each
time in a process of its own: one token of one text at a time, on one thread. Variants whose runtime is not
installed are left out.
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import sys
import tempfile
import time

import numpy as np

from benchmarks.options import bare_parser, fractions, names_among, numbers, parse, positive
from benchmarks.output import print_table, write_figures
from benchmarks.processes import alternate, extremes, machine, median, peak_memory

MODULE = "benchmarks.serving"
LAYERS, WARM_UP = 2, 20


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to serve a model.

    Args:
        runtime: Module that it needs.
        file: Name of what is exported.
        block: Input weights of a block; 0 for a dense model.
        quantize: As in `export.litert`.
    """

    runtime: str
    file: str
    block: int = 0
    quantize: str | None = None


VARIANTS = {
    "savedmodel_dense": Variant("tensorflow", "saved_model"),
    "savedmodel": Variant("tensorflow", "saved_model", 1),
    "savedmodel_packed": Variant("tensorflow", "packed_model", 1),
    "litert_dense": Variant("ai_edge_litert", "model.tflite"),
    "litert_1": Variant("ai_edge_litert", "model.tflite", 1),
    "litert_4": Variant("ai_edge_litert", "model.tflite", 4),
    "litert_dense_int8": Variant("ai_edge_litert", "model.tflite", 0, "int8"),
    "litert_16_int8": Variant("ai_edge_litert", "model.tflite", 16, "int8"),
    "onnx": Variant("onnxruntime", "model.onnx", 1),
    "torch_dense": Variant("torch", "weights.npz"),
    "torch_csr": Variant("torch", "weights.npz", 1),
    "torch_dense_int8": Variant("torch", "weights.npz", 0, "int8"),
}


def prepare(variant, units, sparsity, vocabulary, folder):
    """Exports an untrained model."""
    from keras_selfish import LanguageModel, export

    model = LanguageModel(
        vocabulary,
        units,
        layers=LAYERS,
        sparsity=sparsity if variant.block else 0.0,
        block_shape=(variant.block or 1, 1),
        dropout=0.0,
    )
    path = folder / variant.file
    if variant.file == "saved_model":
        export.saved_model(model, path)
    elif variant.file == "packed_model":
        export.saved_model(model, path, packed="float32")
    elif variant.file == "model.tflite":
        export.litert(model, path, variant.quantize)
    elif variant.file == "model.onnx":
        export.onnx(model, path)
    else:
        plain = export.strip(model.stepwise())
        np.savez(path, *(np.asarray(weight) for weight in plain.get_weights()))
    return path


def torch_step(path, variant):
    """A step of what a PyTorch user would write, and the zero states."""
    import torch

    torch.set_num_threads(1)
    with np.load(path) as stored:
        embedding, *weights = (torch.from_numpy(stored[name]) for name in stored.files)
    units = embedding.shape[1]

    def product(kernel):
        transposed = kernel.T.contiguous()
        if variant.quantize:
            linear = torch.nn.Linear(*kernel.shape, bias=False)
            linear.weight = torch.nn.Parameter(transposed)
            sequential = torch.nn.Sequential(linear)
            return torch.ao.quantization.quantize_dynamic(sequential, {torch.nn.Linear}, torch.qint8)
        if variant.block:
            sparse = transposed.to_sparse_csr()
            return lambda x: torch.mv(sparse, x[0])[None]
        return lambda x: torch.nn.functional.linear(x, transposed)

    cells = [(product(torch.cat(weights[i : i + 2])), weights[i + 2]) for i in range(0, 3 * LAYERS, 3)]
    decoder, bias = product(weights[-2]), weights[-1]

    @torch.inference_mode()
    def step(tokens, states):
        x, states = embedding[torch.from_numpy(tokens[:, 0]).long()], list(states)
        for index, (gates, cell_bias) in enumerate(cells):
            h, c = states[index]
            i, f, g, o = (gates(torch.cat([x, h], 1)) + cell_bias).split(units, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            states[index] = x, c
        return decoder(x) + bias, states

    return step, [(torch.zeros(1, units), torch.zeros(1, units))] * LAYERS


def measure(name, path, vocabulary, seconds):
    """Loads a model and reads tokens one by one for some seconds."""
    variant = VARIANTS[name]
    if variant.runtime == "torch":
        size = path.stat().st_size
        began = time.perf_counter()
        step, states = torch_step(path, variant)
        load = time.perf_counter() - began
    else:
        from trainers.artifacts import open_artifact

        artifact = open_artifact(path)
        step, states, load, size = artifact.step, artifact.states(1), artifact.load_seconds, artifact.size
    tokens = np.random.default_rng(0).integers(0, vocabulary, (4096, 1, 1)).astype(np.int32)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < WARM_UP + 100:
        began = time.perf_counter()
        _, states = step(tokens[len(times) % len(tokens)], states)
        times.append(time.perf_counter() - began)
    times = times[WARM_UP:]
    return {
        "p50_ms": 1000 * float(np.percentile(times, 50)),
        "p99_ms": 1000 * float(np.percentile(times, 99)),
        "load_seconds": load,
        "bytes": size,
        "peak_bytes": peak_memory(),
    }


def cases(options):
    """The (units, sparsity, variant) to measure; dense ones once for each number of units."""
    for units in options.units:
        for name in options.variants:
            if importlib.util.find_spec(VARIANTS[name].runtime) is None:
                print(f"left out: {name}, for {VARIANTS[name].runtime} is not installed", file=sys.stderr)
                continue
            for sparsity in options.sparsities if VARIANTS[name].block else (0.0,):
                yield units, sparsity, name


def parse_arguments(arguments=None):
    parser = bare_parser(__doc__)
    parser.add_argument("--units", type=numbers, default="656,1504", help="(default: %(default)s)")
    parser.add_argument("--vocabulary", type=positive, default=10_000, help="(default: %(default)s)")
    parser.add_argument(
        "--sparsities", type=fractions, default="0.67,0.8,0.9,0.95", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--variants", type=names_among(VARIANTS), default=",".join(VARIANTS), help="(default: all)"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of a measurement (default: %(default)s)")
    parser.add_argument("--prepare", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=pathlib.Path, help=argparse.SUPPRESS)
    return parse(parser, arguments)


def main():
    options = parse_arguments()
    if options.prepare or options.measure:
        ((units, sparsity, name),) = cases(options)
        if options.prepare:
            path = prepare(VARIANTS[name], units, sparsity, options.vocabulary, options.prepare)
            print(json.dumps({"path": str(path)}))
        else:
            print(json.dumps(measure(name, options.measure, options.vocabulary, options.seconds)))
        return
    where = machine()
    with tempfile.TemporaryDirectory() as folder:
        results = run_all(options, pathlib.Path(folder))
    rows = as_rows(results)
    print(where)
    print("One token at a time, one thread\n")
    print_table(
        ["model", "p50 ms", "/ dense", "p99 ms", "MB", "/ dense", "load s", "memory MB"],
        [
            [
                f"2x{row['units']} {row['sparsity']:.0%} {row['variant']}",
                f"{row['p50_ms']:.3f}",
                f"{row['p50_of_dense']:.3f}",
                f"{row['p99_ms']:.3f}",
                f"{row['bytes'] / 1e6:.2f}",
                f"{row['bytes_of_dense']:.3f}",
                f"{row['load_seconds']:.2f}",
                f"{row['peak_bytes'] / 1e6:.0f}",
            ]
            for row in rows
        ],
    )
    rows = [{**row, "rounds": options.rounds, "machine": where} for row in rows]
    write_figures(options.output, "serving", rows, (9, 5), lambda figure: draw(figure, rows))


def run_all(options, folder):
    """The results of each case, one a round."""
    shared = [f"--vocabulary={options.vocabulary}", f"--seconds={options.seconds}"]
    commands = {}
    for number, case in enumerate(list(cases(options))):
        units, sparsity, name = case
        # A dense model is asked for by no sparsity at all, which the command line cannot say.
        flags = [*shared, f"--units={units}", f"--sparsities={sparsity or 0.5}", f"--variants={name}"]
        target = folder / str(number)
        target.mkdir()
        made = alternate({f"export 2x{units} {sparsity} {name}": [MODULE, *flags, f"--prepare={target}"]}, 1)
        ((exported,),) = made.values()
        commands[case] = [MODULE, *flags, f"--measure={exported['path']}"]
    return alternate(commands, options.rounds)


def as_rows(results):
    """Medians over rounds, and ratios to the dense model of the same runtime, or of TensorFlow."""
    rows = []
    for (units, sparsity, name), found in results.items():
        least, largest = extremes(found, "p50_ms")
        keys = ("p50_ms", "p99_ms", "load_seconds", "bytes", "peak_bytes")
        row = {
            "units": units,
            "sparsity": sparsity,
            "variant": name,
            "p50_least": least,
            "p50_largest": largest,
        }
        rows.append(row | {key: median(found, key) for key in keys})
    for row in rows:
        family = row["variant"].split("_")[0]
        dense = [
            other
            for other in rows
            if other["units"] == row["units"] and other["variant"] in (f"{family}_dense", row["variant"])
        ]
        dense = min(dense, key=lambda other: not other["variant"].endswith("_dense"))
        row["p50_of_dense"] = row["p50_ms"] / dense["p50_ms"]
        row["bytes_of_dense"] = row["bytes"] / dense["bytes"]
    return rows


def draw(figure, rows):
    """Time over size, a mark for each case."""
    axes = figure.subplots()
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        axes.plot(
            [row["bytes"] / 1e6 for row in mine], [row["p50_ms"] for row in mine], "o", label=name, alpha=0.8
        )
    axes.set(xscale="log", yscale="log", xlabel="MB", ylabel="ms a token (median)")
    axes.legend(fontsize="small", ncols=2)


if __name__ == "__main__":
    main()
