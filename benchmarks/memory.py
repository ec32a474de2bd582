"""What a model and its training need on each device, on paper and measured.

Usage: python -m benchmarks.memory [--units 4096] [--layers 4] [--vocabulary 250000] [--devices 4]
       python -m benchmarks.memory --units 512 --vocabulary 31248 --measure [--output FOLDER]

A stacked LSTM language model at sparsity 0.67, trained by SNT-ASGD in float32: on one device, with batches
divided among devices (data), and with every matrix divided (model). On paper each part follows from the
shapes alone, so that no memory is taken and any size may be asked for. With --measure the model is made and
trained for two steps on so many devices of the CPU, with Keras on JAX, in a process for each way: the bytes
of variables are those of the shards on the fullest device; `step` is what XLA says a training step holds
besides, which on paper is gradients and activations. On paper a step holds at once the gradients of all
weights, and what the backward pass reads: XLA may need less where it frees as it goes, and more where parts
are exchanged.
"""

import dataclasses
import json
import math
import os

from benchmarks.options import make_parser, parse, positive, sizes_of
from benchmarks.output import draw_bars, print_table, write_figures
from benchmarks.processes import alternate, machine
from benchmarks.task import SETTINGS, SPARSITY, windows

WAYS = ("one", "data", "model")
VARIABLES = ("weights", "masks", "births", "averages", "states")
FLOAT = 4  # bytes


def architecture_of(sizes):
    from keras_selfish.models import Architecture

    return Architecture(sizes.vocabulary, units=sizes.units, layers=sizes.layers, sparsity=SPARSITY)


def on_paper(sizes, way, devices):
    """Bytes on each device.

    Args:
        sizes: The `Sizes` of model and batch.
        way: One of `WAYS`.
        devices: Number of devices.

    Returns:
        A dict from part to bytes.
    """
    import keras

    from keras_selfish.models import layout_map

    mesh = keras.distribution.DeviceMesh(
        (1, devices), ["batch", "model"], [f"cpu:{i}" for i in range(devices)]
    )
    layouts = layout_map(architecture_of(sizes), mesh)
    rows = sizes.batch // (devices if way == "data" else 1)
    shared = devices if way == "model" else 1
    all_weights = masked = 0
    for path, shape in shapes_of(sizes).items():
        parts = shared if layouts[path] is not None else 1
        all_weights += math.prod(shape) // parts
        masked += math.prod(shape) // parts if len(shape) == 2 else 0
    # Inputs, gates before and after their functions, and two states of each layer; logits and their gradient.
    of_layers = sizes.layers * (1 + 2 * 4 + 2) * sizes.units
    features = of_layers + 2 * sizes.vocabulary // shared
    return {
        "weights": FLOAT * all_weights,
        "masks": masked,
        "births": FLOAT * masked,
        "averages": FLOAT * all_weights,
        "states": FLOAT * 2 * 2 * sizes.layers * rows * sizes.units,  # for training and for evaluation
        "gradients": FLOAT * all_weights,
        "activations": FLOAT * rows * sizes.time_steps * features,
    }


def shapes_of(sizes):
    """The shapes of the model's weights, a dict by path."""
    units = sizes.units
    shapes = {"embedding/embeddings": (sizes.vocabulary, units)}
    for index in range(sizes.layers):
        path = f"lstm_{index}_carried/lstm_{index}/lstm_cell"
        kernels = dict.fromkeys([f"{path}/kernel", f"{path}/recurrent_kernel"], (units, 4 * units))
        shapes |= {**kernels, f"{path}/bias": (4 * units,)}
    return {**shapes, "decoder/kernel": (units, sizes.vocabulary), "decoder/bias": (sizes.vocabulary,)}


def measure(sizes, way, devices):
    """Makes the model, trains it for two steps and returns the bytes of each part on the fullest device."""
    import jax
    import keras

    from benchmarks.processes import peak_memory
    from keras_selfish import SNTASGD, LanguageModel, TokenCrossEntropy
    from keras_selfish.models import layout_map

    architecture = architecture_of(sizes)
    mesh = keras.distribution.DeviceMesh((1, devices), ["batch", "model"])
    keras.distribution.set_distribution(
        {
            "one": lambda: None,
            "data": keras.distribution.DataParallel,
            "model": lambda: keras.distribution.ModelParallel(layout_map=layout_map(architecture, mesh)),
        }[way]()
    )
    settings = {**architecture.get_config(), "batch_size": sizes.batch}
    model = LanguageModel(**settings)
    model.compile(SNTASGD(**SETTINGS), loss=TokenCrossEntropy())
    model.optimizer.build(model.trainable_variables)
    data = windows(sizes, 2)
    model.fit(data.batches(), shuffle=False, verbose=0)
    parts = {
        "weights": model.trainable_variables,
        "masks": [variable for variable in model.variables if variable.path.endswith("_mask")],
        "births": [births for births in model.optimizer.births if births is not None],
        "averages": model.optimizer.averages,
        "states": [variable for variable in model.variables if "_state_" in variable.name],
    }
    found = {
        name: max(held([v.value for v in variables]).values())
        for name, variables in {**parts, "states": [v for v in parts["states"] if len(v.shape) == 2]}.items()
    }
    x, y = data[0]
    distribution = keras.distribution.distribution()
    if distribution is not None:

        def place(array):
            return jax.device_put(array, distribution.get_data_layout(array.shape).backend_layout)

        x, y = jax.tree.map(place, x), place(y)
    state = [
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    ]
    shardings = jax.tree.map(lambda array: array.sharding, state)
    step = jax.jit(model.train_step, donate_argnums=0, out_shardings=(None, tuple(shardings)))
    analysis = step.lower(tuple(state), (x, y)).compile().memory_analysis()
    return {**found, "step": analysis.temp_size_in_bytes, "process": peak_memory()}


def held(arrays):
    """Bytes of arrays on each device, a dict."""
    sizes = {}
    for array in arrays:
        for shard in array.addressable_shards:
            sizes[shard.device.id] = sizes.get(shard.device.id, 0) + shard.data.nbytes
    return sizes


def rows_of(sizes, devices, measured):
    """One dict of figures for each way and part."""
    rows = []
    for way in WAYS:
        paper = on_paper(sizes, way, devices)
        paper["step"] = paper["gradients"] + paper["activations"]
        paper["all"] = sum(paper[name] for name in (*VARIABLES, "step"))
        found = dict(measured.get(way, {}))
        if found:
            found["all"] = sum(found[name] for name in (*VARIABLES, "step"))
        for name in (*VARIABLES, "gradients", "activations", "step", "all"):
            rows.append({"way": way, "part": name, "paper": paper[name], "measured": found.get(name, "")})
    return rows


def main():
    parser = make_parser(__doc__, rounds=1, units=4096, layers=4, vocabulary=250_000)
    parser.add_argument("--devices", type=positive, default=4, help="(default: %(default)s)")
    parser.add_argument("--measure", action="store_true", help="measure, too, which takes that memory")
    parser.add_argument("--process", choices=WAYS, help="measure this one in this process, as JSON")
    options = parse(parser)
    os.environ["KERAS_BACKEND"] = "jax"  # which tells shapes without making weights
    sizes = sizes_of(options)
    for name, size in (("units", sizes.units), ("batch", sizes.batch), ("vocabulary", sizes.vocabulary)):
        if size % options.devices:
            parser.error(f"--{name} must be a multiple of --devices. Received: --{name}={size}")
    if options.process:
        print(json.dumps(measure(sizes, options.process, options.devices)))
        return
    measured = {}
    if options.measure:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices}"
        os.environ["NPROC"] = str(8 * options.devices)  # threads, of which each exchange takes one a device
        flags = [*sizes.flags(), f"--devices={options.devices}"]
        commands = {way: ["benchmarks.memory", f"--process={way}", *flags] for way in WAYS}
        measured = {way: found[0] for way, found in alternate(commands, 1).items()}
    rows = rows_of(sizes, options.devices, measured)
    print(machine())
    print(f"{sizes}; MB on each of {options.devices} devices\n")
    megabytes = {
        key: ["" if row[key] == "" else f"{row[key] / 1e6:,.1f}" for row in rows]
        for key in ("paper", "measured")
    }
    ways = [row["way"] for row in rows]
    print_table(
        ["way", "part", "on paper", "measured"],
        [list(cells) for cells in zip(ways, (row["part"] for row in rows), *megabytes.values(), strict=True)],
    )
    for way, found in measured.items():
        print(f"{way}: the process, which holds all devices, held {found['process'] / 1e6:,.0f} MB at most")
    settings = {**dataclasses.asdict(sizes), "devices": options.devices, "machine": machine()}

    def draw(figure):
        shown = [row for row in rows if row["part"] == "all"]
        axes = figure.subplots()
        draw_bars(axes, [row["way"] for row in shown], [row["paper"] / 1e9 for row in shown])
        axes.set_xlabel(f"GB on each of {options.devices} devices, on paper")
        axes.set_title(str(sizes), fontsize="medium")

    write_figures(options.output, "memory", [{**row, **settings} for row in rows], (8, 2.6), draw)


if __name__ == "__main__":
    main()
