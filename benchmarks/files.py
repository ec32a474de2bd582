"""Size of stored models and checkpoints, and the time to write and to read them.

Usage: python -m benchmarks.files [--units 650] [--sparsities 0.67,0.9] [--rounds 5]

A language model with SNT-ASGD that averages, stored as weights, as a `.keras` file with and without its
optimizer, and as the checkpoint of a trainer; `arrays` is the size of its variables, a byte for each entry of
a mask.
"""

import pathlib
import statistics
import tempfile
import time

import keras

from benchmarks.options import fractions, make_parser, parse, sizes_of
from benchmarks.output import print_table, write_figures
from benchmarks.processes import machine
from trainers.workdir import Workdir

COLUMNS = ("sparsity", "arrays_mb", "file_mb", "write_s", "read_s")


def language_model(sizes, sparsity):
    """A language model that is not compiled."""
    from keras_selfish.models import LanguageModel

    return LanguageModel(
        sizes.vocabulary, units=sizes.units, layers=sizes.layers, batch_size=sizes.batch, sparsity=sparsity
    )


def averaging(model):
    """A model compiled with an optimizer that holds averages of all weights."""
    from keras_selfish.models import TokenCrossEntropy
    from keras_selfish.optimizers import SNTASGD

    model.compile(SNTASGD(1.0), loss=TokenCrossEntropy())
    model.optimizer.build(model.trainable_variables)
    model.optimizer.start_averaging()
    return model


def bare_forms(model, folder):
    """Dict from the name of a form to a file, what writes and what reads it; without an optimizer."""
    weights, whole = folder / "m.weights.h5", folder / "m.keras"
    return {
        ".weights.h5": (weights, lambda: model.save_weights(weights), lambda: model.load_weights(weights)),
        ".keras": (whole, lambda: model.save(whole), lambda: keras.saving.load_model(whole)),
    }


def forms(model, folder):
    """The same, of a model with its optimizer."""
    workdir = Workdir(folder, "language model")
    whole = folder / "m.keras"

    def save_checkpoint():
        workdir.save_checkpoint(model, 1)
        workdir.wait()

    return {
        ".keras, optimizer": (whole, lambda: model.save(whole), lambda: keras.saving.load_model(whole)),
        "checkpoint": (
            folder / "checkpoint-00001.npz",
            save_checkpoint,
            lambda: workdir.restore(model, workdir.checkpoint()),
        ),
    }


def seconds(function, rounds):
    """The median time of a call after a first one, which is not counted."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def measured(sparsity, variables, forms_of, model, rounds):
    """The rows of a model's forms."""
    arrays = sum(keras.ops.convert_to_numpy(variable).nbytes for variable in variables) / 1e6
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (path, write, read) in forms_of(model, pathlib.Path(folder)).items():
            row = {"form": name, "sparsity": sparsity, "arrays_mb": arrays, "write_s": seconds(write, rounds)}
            rows.append({**row, "file_mb": path.stat().st_size / 1e6, "read_s": seconds(read, rounds)})
    return rows


def main():
    parser = make_parser(__doc__, rounds=5, units=650)
    parser.add_argument(
        "--sparsities", type=fractions, default="0.67,0.9", help="beside 0 (default: %(default)s)"
    )
    options = parse(parser)
    where = machine()
    print(where, end="\n\n")
    rows = []
    for sparsity in (0.0, *options.sparsities):
        model = language_model(sizes_of(options), sparsity)
        rows += measured(sparsity, model.variables, bare_forms, model, options.rounds)
        averaging(model)
        every = [*model.variables, *model.optimizer.variables]
        rows += measured(sparsity, every, forms, model, options.rounds)
    print_table(
        ("form", "sparsity", "arrays MB", "file MB", "write s", "read s"),
        [[row["form"], *(f"{row[key]:.2f}" for key in COLUMNS)] for row in rows],
    )
    rows = [{**row, "rounds": options.rounds, "machine": where} for row in rows]
    write_figures(options.output, "files", rows, (8, 4), lambda figure: draw(figure, rows))


def draw(figure, rows):
    """Size over sparsity, a line for each form."""
    axes = figure.subplots()
    for form in dict.fromkeys(row["form"] for row in rows):
        mine = [row for row in rows if row["form"] == form]
        axes.plot([row["sparsity"] for row in mine], [row["file_mb"] for row in mine], "o-", label=form)
    axes.set(xlabel="sparsity", ylabel="MB", ylim=(0, None))
    axes.legend()


if __name__ == "__main__":
    main()
