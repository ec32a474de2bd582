"""Exported language models of any format, as one kind of thing: a step from tokens and states to logits.

Each format needs its runtime only. `open_artifact` finds the format by what stands at a path. A format of
one's own is a subclass of `Artifact` in the list `KINDS` (docs/extending.md).
"""

import abc
import importlib.util
import pathlib
import time
import zipfile

import numpy as np
from absl import logging

from trainers.files import RunError


class Artifact(abc.ABC):
    """A language model that was written to disk.

    Args:
        path: `pathlib.Path` of it.
        threads: Number of threads.

    Attributes:
        kind: Name of the format.
        suffix: What the names of its files end in; None of a folder.
        runtime: The package that it needs.
        tokens: The vocabulary, a list of strings in the order of their ids; None if it is not with the model.
        size: Bytes on disk.
        load_seconds: How long loading took, the runtime's import not included.
    """

    kind: str
    suffix: str | None = None
    runtime: str

    def __init__(self, path, threads=1):
        self.path, self.threads = path, threads
        if importlib.util.find_spec(self.runtime) is None:
            package = self.runtime.replace("_", "-")
            raise RunError(
                f"--model of this format needs the package {package}, which is not installed. "
                f"Received: --model={path}; install {package}"
            )
        self._import()
        began = time.perf_counter()
        self.widths = self._load()
        self.load_seconds = time.perf_counter() - began
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        self.size = sum(file.stat().st_size for file in files)
        self.tokens = self._tokens()

    @classmethod
    def is_at(cls, path):
        """Whether what stands at a path, or is named like it, is of this format."""
        return cls.suffix is not None and path.suffix == cls.suffix

    def states(self, batch_size):
        """The zero states that texts begin with, a dict from name to float32 array (batch, units)."""
        return {name: np.zeros((batch_size, width), np.float32) for name, width in self.widths.items()}

    @abc.abstractmethod
    def _import(self):
        """Imports the runtime, which is not counted as loading."""

    @abc.abstractmethod
    def _load(self):
        """Loads the model and returns the width of each state by name, a dict."""

    @abc.abstractmethod
    def step(self, tokens, states):
        """Reads a token of each text.

        Args:
            tokens: int32 array (batch, 1).
            states: Dict as from `states`.

        Returns:
            Logits (batch, vocabulary) of the next token, and the new states.
        """

    def log_probabilities(self, columns, progress=None):
        """The sum of the log-probabilities of all tokens of texts but the first ones, in nats.

        Args:
            columns: int32 array (batch, time).
            progress: Function that is told how many tokens have been read. Default None.
        """
        total, states = 0.0, self.states(len(columns))
        for index in range(columns.shape[1] - 1):
            logits, states = self.step(columns[:, index : index + 1], states)
            total += float(log_softmax(logits)[np.arange(len(columns)), columns[:, index + 1]].sum())
            if progress:
                progress(len(columns) * (index + 1))
        return total

    def _tokens(self):
        beside = self.path.parent / "vocabulary.txt"
        return _lines(beside.read_text(encoding="utf-8")) if beside.exists() else None


class LiteRT(Artifact):
    """A LiteRT file."""

    kind = "LiteRT"
    suffix = ".tflite"
    runtime = "ai_edge_litert"

    def _import(self):
        import ai_edge_litert.interpreter  # noqa: F401

    def _load(self):
        from keras_selfish.litert import runner

        # Elsewhere first: a damaged file may end the process that loads it.
        runner.check(self.path)
        self._runners = {}
        inputs = self._runner(1).get_input_details()
        if "tokens" not in inputs:
            raise RunError(
                f"--model must be a language model with an input `tokens`. Received: --model={self.path}, "
                f"with the inputs {', '.join(inputs)}"
            )
        return {name: int(detail["shape"][1]) for name, detail in inputs.items() if name != "tokens"}

    def _runner(self, batch_size):
        from keras_selfish.litert import runner

        if batch_size not in self._runners:
            self._runners = {batch_size: runner.interpreter(self.path, self.threads, batch_size)}
        return self._runners[batch_size][1]

    def step(self, tokens, states):
        outputs = self._runner(len(tokens))(tokens=tokens, **states)
        # The interpreter computes into the arrays that it returned before.
        outputs = {name: np.array(value) for name, value in outputs.items()}
        return outputs.pop("logits"), outputs

    def _tokens(self):
        if zipfile.is_zipfile(self.path):
            with zipfile.ZipFile(self.path) as archive:
                if "vocabulary.txt" in archive.namelist():
                    return _lines(archive.read("vocabulary.txt").decode("utf-8"))
        return super()._tokens()


class SavedModel(Artifact):
    """A SavedModel of TensorFlow."""

    kind = "SavedModel"
    runtime = "tensorflow"

    @classmethod
    def is_at(cls, path):
        return path.is_dir() and (path / "saved_model.pb").exists()

    def _import(self):
        import tensorflow as tf

        if tf.config.threading.get_intra_op_parallelism_threads() != self.threads:
            try:
                tf.config.threading.set_intra_op_parallelism_threads(self.threads)
                tf.config.threading.set_inter_op_parallelism_threads(self.threads)
            except RuntimeError:
                logging.warning("TensorFlow runs in this process already: --threads is not heeded")

    def _load(self):
        import tensorflow as tf

        self._loaded = tf.saved_model.load(str(self.path))
        if not {"score", "step"} <= set(self._loaded.signatures):
            raise RunError(
                "--model must be a language model with the signatures `score` and `step`. "
                f"Received: --model={self.path}, with {', '.join(self._loaded.signatures) or 'none'}"
            )
        self._step, self._score = (self._loaded.signatures[name] for name in ("step", "score"))
        specs = self._step.structured_input_signature[1]
        return {name: spec.shape[-1] for name, spec in specs.items() if name != "tokens"}

    def step(self, tokens, states):
        import tensorflow as tf

        outputs = self._step(tokens=tf.constant(tokens), **{n: tf.constant(s) for n, s in states.items()})
        outputs = {name: value.numpy() for name, value in outputs.items()}
        return outputs.pop("logits"), outputs

    def log_probabilities(self, columns, progress=None):
        """As in `Artifact`; its own signature reads several tokens at a time."""
        import tensorflow as tf

        return float(
            self._score(tokens=tf.constant(columns))["log_probabilities"].numpy().sum(dtype=np.float64)
        )

    def _tokens(self):
        file = self.path / "assets" / "vocabulary.txt"
        return _lines(file.read_text(encoding="utf-8")) if file.exists() else super()._tokens()


class ONNX(Artifact):
    """An ONNX file, in ONNX Runtime."""

    kind = "ONNX"
    suffix = ".onnx"
    runtime = "onnxruntime"

    def _import(self):
        import onnxruntime  # noqa: F401

    def _load(self):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = self.threads
        self._session = onnxruntime.InferenceSession(str(self.path), options, ["CPUExecutionProvider"])
        inputs = {value.name: value for value in self._session.get_inputs()}
        if "tokens" not in inputs:
            raise RunError(
                f"--model must be a language model with an input `tokens`. Received: --model={self.path}, "
                f"with the inputs {', '.join(inputs)}"
            )
        return {name: value.shape[-1] for name, value in inputs.items() if name != "tokens"}

    def step(self, tokens, states):
        logits, *finals = self._session.run(None, {"tokens": tokens, **states})
        return logits[:, -1] if logits.ndim == 3 else logits, dict(zip(self.widths, finals, strict=True))


class KerasFile(Artifact):
    """A .keras file of this package or of a stripped language model."""

    kind = "Keras"
    suffix = ".keras"
    runtime = "keras"

    def _import(self):
        import keras

        import keras_selfish  # noqa: F401

        if keras.backend.backend() == "tensorflow":
            SavedModel._import(self)

    def _load(self):
        import keras

        self._model = keras.models.load_model(self.path, compile=False)
        if not hasattr(self._model, "stepwise"):
            raise RunError(
                "--model must be a language model, with a method `stepwise()`. "
                f"Received: --model={self.path}, a {type(self._model).__name__}"
            )
        self._stepwise = self._model.stepwise()
        return {tensor.name: tensor.shape[-1] for tensor in self._stepwise.inputs[1:]}

    def step(self, tokens, states):
        import keras

        # `predict` compiles the step once for each shape.
        outputs = self._stepwise.predict_on_batch([tokens, *(states[name] for name in self.widths)])
        logits, *finals = (keras.ops.convert_to_numpy(output) for output in outputs)
        return logits[:, -1].astype(np.float32), dict(zip(self.widths, finals, strict=True))


KINDS: list[type[Artifact]] = [SavedModel, LiteRT, ONNX, KerasFile]


def formats():
    """What can be opened, for sentences."""
    *suffixes, last = [kind.suffix for kind in KINDS if kind.suffix]
    return f"a SavedModel folder, or a file that ends in {', '.join(suffixes)} or {last}"


def open_artifact(path, threads=1):
    """The `Artifact` at a path.

    Raises:
        RunError: if there is none, or it is damaged, or its runtime is missing.
    """
    path = pathlib.Path(path)
    kind = next((kind for kind in KINDS if kind.is_at(path)), None)
    if kind is None or not path.exists():
        what = "nothing is there" if not path.exists() else "which is something else"
        raise RunError(f"--model must be {formats()}. Received: --model={path}, {what}")
    try:
        return kind(path, threads)
    except RunError:
        raise
    except Exception as error:  # runtimes have no error in common for a file that they cannot read
        reason = str(error).strip().splitlines()
        raise RunError(
            f"--model must be a whole {kind.kind} model. Received: --model={path}, which cannot be loaded: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error


def log_softmax(logits):
    """Logarithms of the probabilities of logits (batch, vocabulary), in float64."""
    logits = logits.astype(np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def sample(logits, generator, temperature=1.0, top_k=0, top_p=1.0):
    """Draws a token.

    Args:
        logits: Array (vocabulary,); minus infinity where a token must not come.
        generator: NumPy random generator.
        temperature: What logits are divided by; 0 takes the likeliest token. Default 1.
        top_k: Number of the likeliest tokens to draw from; 0 (default) for all.
        top_p: Draw from the fewest tokens whose probabilities sum to this. Default 1: from all.

    Returns:
        The id of the token.
    """
    if temperature == 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    probabilities = np.exp(log_softmax(logits[None, order] / temperature)[0])
    kept = np.cumsum(probabilities) - probabilities < top_p
    probabilities = probabilities[kept] / probabilities[kept].sum()
    return int(generator.choice(order[kept], p=probabilities))


def _lines(text):
    return text.split("\n")[:-1]
