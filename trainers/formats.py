"""The formats that models are exported in, as data: what `trainers.export` lists and writes.

A format of one's own is a row of `FORMATS`; `trainers.artifacts.KINDS` reads it again (docs/extending.md).
"""

import dataclasses
from collections.abc import Callable

from trainers import program


@dataclasses.dataclass(frozen=True)
class Format:
    """A format as `trainers.export` lists it.

    Args:
        name: Name of the file or folder in the folder of a run.
        summary: What it is for, for a help text.
        write: Function of the model, the path, the vocabulary (a list of tokens; None of a model without one)
            and, by name, the options that the format takes. It returns the path, and if it fails it leaves
            what stands there as it is.
        quantize: Types that weights can be rounded to, with the option `quantize`. Default none.
        time_steps: Whether sequences that a model leaves open can be given a length, with the option
            `time_steps`. Default False.
    """

    name: str
    summary: str
    write: Callable
    quantize: tuple[str, ...] = ()
    time_steps: bool = False

    def file_name(self, quantize):
        """The name in the folder of a run, of weights of some type."""
        stem, dot, suffix = self.name.partition(".")
        return f"{stem}_{quantize}{dot}{suffix}" if quantize else self.name


def _saved_model(model, path, tokens, **options):
    from keras_selfish import export

    program.check_backend(export=True)
    return export.saved_model(model, path, tokens, **options)


def _packed(model, path, tokens, quantize=None):
    return _saved_model(model, path, tokens, packed=quantize or "float32")


def _litert(model, path, tokens, **options):
    from keras_selfish import export

    return export.litert(model, path, vocabulary=tokens, **options)


def _onnx(model, path, tokens):
    from keras_selfish import export

    return export.onnx(model, path)


FORMATS = {
    "savedmodel": Format("saved_model", "TensorFlow, dense", _saved_model),
    "packed": Format("packed_model", "the same, small on disk", _packed, quantize=("int8", "bfloat16")),
    "litert": Format(
        "model.tflite",
        "small and fast on CPUs and phones",
        _litert,
        quantize=("int8", "float16"),
        time_steps=True,
    ),
    "onnx": Format("model.onnx", "ONNX Runtime, dense", _onnx),
}
