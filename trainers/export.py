"""Exports the model of a finished or running training for serving.

Writes into --workdir, beside what is there: `saved_model`, `packed_model`, `model.tflite` or `model.onnx`.

Example:
    python -m trainers.export --workdir runs/ptb --format litert --quantize int8
"""

from absl import flags, logging

from trainers import program
from trainers.files import RunError, is_whole_archive, writing

FLAGS = flags.FLAGS
FORMATS = ("savedmodel", "packed", "litert", "onnx")
NAMES = {
    "savedmodel": "saved_model",
    "packed": "packed_model",
    "litert": "model.tflite",
    "onnx": "model.onnx",
}

flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
flags.DEFINE_enum(
    "format",
    "savedmodel",
    FORMATS,
    "savedmodel: TensorFlow, dense. packed: the same, small on disk. litert: small and fast on CPUs and "
    "phones. onnx: ONNX Runtime, dense.",
)
flags.DEFINE_enum(
    "quantize", None, ["int8", "float16", "bfloat16"], "Values of weights, of litert and packed."
)
flags.DEFINE_integer("time_steps", None, "litert: length of sequences, where the model leaves it open.")
flags.DEFINE_string("output", None, "What to write, in place of its usual name in --workdir.")


def export():
    """Writes the best model of the run of the flags."""
    workdir = program.path("workdir")
    file = model_file(workdir)
    check_options()
    name = NAMES[FLAGS.format]
    if FLAGS.quantize:
        stem, dot, suffix = name.partition(".")
        name = f"{stem}_{FLAGS.quantize}{dot}{suffix}"
    output = program.path("output") if FLAGS.output else workdir / name
    import keras

    import keras_selfish  # noqa: F401  its classes are in the file

    model = keras.models.load_model(file, compile=False)
    tokens = None
    if hasattr(model, "stepwise") and (workdir / "vocabulary.txt").exists():
        from keras_selfish.data import Vocabulary

        tokens = Vocabulary.load(workdir / "vocabulary.txt").tokens
    with writing(output):
        path = write(model, output, tokens)
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


def check_options():
    """Refuses flags that the format has no use for."""
    allowed = {"litert": ("int8", "float16"), "packed": ("int8", "bfloat16")}.get(FLAGS.format, ())
    if FLAGS.quantize and FLAGS.quantize not in allowed:
        choices = f"one of {', '.join(allowed)}" if allowed else "left out"
        raise RunError(
            f"--quantize must be {choices} with --format={FLAGS.format}. "
            f"Received: --quantize={FLAGS.quantize}"
        )
    if FLAGS.time_steps is not None and FLAGS.format != "litert":
        raise RunError(
            f"--time_steps goes with --format=litert. Received: --format={FLAGS.format} "
            f"--time_steps={FLAGS.time_steps}"
        )


def write(model, output, tokens):
    """Exports a model in the format of the flags and returns the path."""
    from keras_selfish import export as formats

    if FLAGS.format == "litert":
        return formats.litert(model, output, FLAGS.quantize, vocabulary=tokens, time_steps=FLAGS.time_steps)
    if FLAGS.format == "onnx":
        return formats.onnx(model, output)
    program.check_backend(export=True)
    packed = {"packed": FLAGS.quantize or "float32"} if FLAGS.format == "packed" else {}
    return formats.saved_model(model, output, tokens, **packed)


main = program.tool(export)


def run():
    """Entry point."""
    program.run_tool(main)


if __name__ == "__main__":
    run()
