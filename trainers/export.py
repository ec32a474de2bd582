"""Exports the model of a finished or running training for serving.

Writes into --workdir, beside what is there: `saved_model`, `packed_model`, `model.tflite` or `model.onnx`.

Example:
    python -m trainers.export --workdir runs/ptb --format litert --quantize int8
"""

from absl import flags, logging

from trainers import program
from trainers.files import RunError, is_whole_archive, writing
from trainers.formats import FORMATS

FLAGS = flags.FLAGS


def formats_with(option):
    """The names of the formats that take an option, for sentences."""
    return " and ".join(name for name, one in FORMATS.items() if getattr(one, option))


flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
flags.DEFINE_enum(
    "format",
    "savedmodel",
    list(FORMATS),
    ". ".join(f"{name}: {one.summary}" for name, one in FORMATS.items()) + ".",
)
flags.DEFINE_enum(
    "quantize",
    None,
    sorted({kind for one in FORMATS.values() for kind in one.quantize}),
    f"Values of weights, of {formats_with('quantize')}.",
)
flags.DEFINE_integer(
    "time_steps",
    None,
    f"{formats_with('time_steps')}: length of sequences, where the model leaves it open.",
)
flags.DEFINE_string("output", None, "What to write, in place of its usual name in --workdir.")


def export():
    """Writes the best model of the run of the flags."""
    workdir = program.path("workdir")
    file = model_file(workdir)
    check_options()
    form = FORMATS[FLAGS.format]
    output = program.path("output") if FLAGS.output else workdir / form.file_name(FLAGS.quantize)
    import keras

    import keras_selfish  # noqa: F401  its classes are in the file

    model = keras.models.load_model(file, compile=False)
    tokens = None
    if hasattr(model, "stepwise") and (workdir / "vocabulary.txt").exists():
        from keras_selfish.data import Vocabulary

        tokens = Vocabulary.load(workdir / "vocabulary.txt").tokens
    with writing(output):
        path = form.write(model, output, tokens, **options())
    files = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
    logging.info("Exported %s to %s, %.2f MB", file, path, sum(part.stat().st_size for part in files) / 1e6)
    return path


def model_file(workdir):
    """The file of the best model of a run: where the run is done the final one, else the best so far."""
    for name in ("final.keras", "best.keras"):
        file = workdir / name
        if file.exists():
            if not is_whole_archive(file):
                raise RunError(
                    f"--workdir must hold a whole model. Received: {file}, which is damaged; start the "
                    "trainer again with the same --workdir"
                )
            return file
    raise RunError(
        "--workdir must be the folder of a run that has finished an epoch. "
        f"Received: --workdir={workdir}, which has neither final.keras nor best.keras"
    )


def options():
    """The options of the flags that are given, by name."""
    given = {name: getattr(FLAGS, name) for name in ("quantize", "time_steps")}
    return {name: value for name, value in given.items() if value is not None}


def check_options():
    """Refuses flags that the format has no use for."""
    form = FORMATS[FLAGS.format]
    if FLAGS.quantize and FLAGS.quantize not in form.quantize:
        choices = f"one of {', '.join(form.quantize)}" if form.quantize else "left out"
        raise RunError(
            f"--quantize must be {choices} with --format={FLAGS.format}. "
            f"Received: --quantize={FLAGS.quantize}"
        )
    if FLAGS.time_steps is not None and not form.time_steps:
        raise RunError(
            f"--time_steps goes with --format={formats_with('time_steps')}. "
            f"Received: --format={FLAGS.format} --time_steps={FLAGS.time_steps}"
        )


main = program.tool(export)


def run():
    """Entry point."""
    program.run_tool(main)


if __name__ == "__main__":
    run()
