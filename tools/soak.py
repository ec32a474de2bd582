"""Trains for hours and watches what must not change: memory, the number of connections, what is compiled.

Usage: KERAS_BACKEND=jax python -m tools.soak --minutes 120 --output FOLDER

A small language model is trained with validation and averaging each epoch, saved each --save_epochs, and
rewired every 20 steps, in one `fit`. Written are FOLDER/soak-BACKEND.json and, with the extra `plot`, a PNG
of the same name; an interrupted run writes what it has. The exit status is 1 if one of these does not hold:

- memory: after the warm-up resident memory does not grow by more than --limit an hour, which is compared with
  the lower end of the slope's 95% interval. Samples are averaged in 12 blocks of time, so that the interval
  allows for samples that depend on those before;
- counts: at each rewiring every matrix has as many connections as at the beginning, no weight that does not
  exist is other than zero, and the optimizer knows of the same connections;
- compilations: none after the warm-up. On JAX XLA's compilations are counted, on TensorFlow graphs that are
  built, of which each trace of a `tf.function` makes one at least;
- loss: it is finite.
"""

import argparse
import collections
import json
import math
import os
import pathlib
import signal
import sys
import tempfile
import time
import traceback

import numpy as np

BLOCKS = 12
T_QUANTILE = 2.228  # of Student's distribution, 97.5%, with BLOCKS - 2 degrees of freedom
SHOWN = 10  # of what went wrong
SAMPLES = 5_000
METHODS = ("selfish", "set", "rigl", "snfs", "dsr")


def arguments(given=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=_over_zero(float), default=120.0, help="of training (120)")
    parser.add_argument(
        "--warmup",
        type=_over_zero(float),
        help="minutes not judged (a quarter, 20 at most)",
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="FOLDER")
    parser.add_argument("--method", choices=METHODS, default="selfish", help="of rewiring (%(default)s)")
    parser.add_argument(
        "--limit", type=_over_zero(float), default=10.0, help="MB an hour that memory may grow by (10)"
    )
    parser.add_argument("--rewiring_steps", type=_over_zero(int), default=20, help="(%(default)s)")
    parser.add_argument("--epoch_steps", type=_over_zero(int), default=200, help="(%(default)s)")
    parser.add_argument(
        "--save_epochs",
        type=_over_zero(int),
        default=1,
        help="epochs from one saved model to the next (%(default)s); Keras 3.15 loses some 70 kB each time "
        "that it saves a compiled model, a plain one as well",
    )
    parser.add_argument("--units", type=_over_zero(int), default=64, help="of two LSTM layers (%(default)s)")
    parser.add_argument("--vocabulary", type=_over_zero(int), default=2_000, help="(%(default)s)")
    options = parser.parse_args(given)
    options.warmup = min(20.0, options.minutes / 4) if options.warmup is None else options.warmup
    if options.warmup >= options.minutes:
        parser.error(
            f"--warmup must be shorter than --minutes. Received: --warmup={options.warmup} "
            f"--minutes={options.minutes}"
        )
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(
            f"--output must be a folder that can be made. Received: {options.output} ({error.strerror})"
        )
    return options


def _over_zero(kind):
    def number(text):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be a number over 0. Received: {text}")
        return value

    return number


def resident_memory():
    """Bytes of memory that this process holds now (Linux)."""
    pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Compilations:
    """When something was traced or compiled, and after the warm-up where it was asked for."""

    def __init__(self, backend):
        self.times = []
        self.is_warm = False
        self.late = 0
        self.places = collections.Counter()
        {"tensorflow": self._watch_tensorflow, "jax": self._watch_jax}[backend]()

    def _watch_tensorflow(self):
        import tensorflow as tf

        begin = tf.Graph.__init__

        def counted(graph, *args, **kwargs):
            self._note()
            begin(graph, *args, **kwargs)

        tf.Graph.__init__ = counted

    def _watch_jax(self):
        import jax

        def listen(event, duration, **_):
            if event.endswith("/backend_compile_duration"):
                self._note()

        jax.monitoring.register_event_duration_secs_listener(listen)

    def _note(self):
        self.times.append(time.perf_counter())
        if self.is_warm:
            self.late += 1
            here = [frame for frame in traceback.extract_stack() if "site-packages" not in frame.filename]
            place = " < ".join(f"{pathlib.Path(f.filename).name}:{f.lineno}" for f in here[-3:-6:-1])
            if place in self.places or len(self.places) < SHOWN:
                self.places[place] += 1


class Wrong(list):
    """What did not hold: how often, and the first few in words."""

    count = 0

    def note(self, text):
        self.count += 1
        if len(self) < SHOWN:
            self.append(text)


def make_watch(options, compilations):
    """The callback that measures; it stands behind the one that rewires."""
    import keras
    from keras import ops

    from keras_selfish.masks import masked_weights

    class Watch(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.samples = []  # seconds, bytes, steps
            self.wrong, self.losses = Wrong(), Wrong()
            self.steps = self.epochs = self.checks = self.rewirings = 0
            self.interval = max(0.25, 60 * options.minutes / SAMPLES)
            self.began, self.warm = time.perf_counter(), math.inf  # when it began, and seconds of warm-up

        @property
        def seconds(self):
            return time.perf_counter() - self.began

        def on_train_begin(self, logs=None):
            self.counts = {weight.name: weight.active for weight in masked_weights(self.model)}
            self.masks = self._masks()

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:  # the same epoch in each run, so that its compilations are in the warm-up
                self._sync()
                self.model.optimizer.start_averaging()

        def on_train_batch_begin(self, batch, logs=None):
            if self.steps and self.steps % options.rewiring_steps == 0:
                self._check()
            if not self.samples or self.seconds - self.samples[-1][0] >= self.interval:
                self.samples.append((self.seconds, resident_memory(), self.steps))

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            if self.seconds >= 60 * options.minutes:
                self.model.stop_training = True

        def on_epoch_end(self, epoch, logs=None):
            self.epochs += 1
            for name in ("loss", "val_loss"):
                if name in logs and not math.isfinite(logs[name]):
                    self.losses.note(f"{name} is {logs[name]} after step {self.steps}")
            if not compilations.is_warm and self.seconds >= 60 * options.warmup and self.epochs >= 3:
                self.warm, compilations.is_warm = self.seconds, True
            print(
                f"{self.seconds / 60:7.1f} min  {self.steps} steps  {self.rewirings} rewirings  "
                f"{resident_memory() / 1e6:.1f} MB  {len(compilations.times)} compilations  "
                f"loss {logs['loss']:.3f}  wrong {self.wrong.count}",
                flush=True,
            )

        def _sync(self):
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()

        def _paths(self):
            return [variable.path for variable in self.model.trainable_variables]

        def _masks(self):
            return [np.array(ops.convert_to_numpy(w.mask)) for w in masked_weights(self.model)]

        def _check(self):
            self._sync()
            masks = self._masks()
            births = dict(zip(self._paths(), self.model.optimizer.births, strict=True))
            for weight, mask in zip(masked_weights(self.model), masks, strict=True):
                known = births[weight.weight.path]
                if mask.sum() != self.counts[weight.name]:
                    self.wrong.note(f"step {self.steps}: {weight.name} has {mask.sum()} connections")
                if ops.convert_to_numpy(weight.weight)[~mask].any():
                    self.wrong.note(f"step {self.steps}: {weight.name} is not zero outside its mask")
                if ((ops.convert_to_numpy(known) >= 0) != mask).any():
                    self.wrong.note(f"step {self.steps}: the optimizer has other births of {weight.name}")
            self.checks += 1
            self.rewirings += any((new != old).any() for new, old in zip(masks, self.masks, strict=True))
            self.masks = masks

    return Watch()


def make_model(options):
    from keras_selfish import SNTASGD, Perplexity, TokenCrossEntropy, language_model

    model = language_model(
        None, options.vocabulary, units=options.units, layers=2, batch_size=8, dropout=0.1, sparsity=0.67
    )
    model.compile(
        SNTASGD(1.0, global_clipnorm=0.25, weight_decay=1.2e-6), TokenCrossEntropy(), metrics=[Perplexity()]
    )
    model.optimizer.build(model.trainable_variables)
    return model


def make_windows(options):
    """Tokens whose frequency falls with their number, as windows for training and for validation."""
    from keras_selfish.data import Windows

    steps, batch, time_steps = options.epoch_steps, 8, 16
    ranks = 1.0 / np.arange(1, options.vocabulary + 1)
    draw = np.random.default_rng(0)
    sizes = [batch * (time_steps * count + 1) for count in (steps, max(steps // 10, 1))]
    tokens = [draw.choice(options.vocabulary, size, p=ranks / ranks.sum()) for size in sizes]
    return [Windows(one, batch, time_steps) for one in tokens]


def train(options, watch, folder):
    import keras

    from keras_selfish.optimizers import NonMonotonicAveraging
    from keras_selfish.rewiring.registry import METHODS as REGISTERED

    model = make_model(options)
    training, validation = make_windows(options)
    rewiring = REGISTERED[options.method].callback(
        0.3, schedule="constant", frequency=options.rewiring_steps, gradient_data=training
    )
    model.fit(
        training.batches(),
        validation_data=validation.batches(),
        epochs=10**9,
        shuffle=False,
        verbose=0,
        callbacks=[
            rewiring,
            NonMonotonicAveraging(patience=128),
            keras.callbacks.ModelCheckpoint(
                folder / "last.keras", save_freq=options.save_epochs * options.epoch_steps
            ),
            watch,
        ],
    )


def slope(samples, warmup):
    """Growth of memory after the warm-up, in MB an hour: the slope, and half of its 95% interval.

    Both are NaN where there are too few samples.
    """
    late = [sample for sample in samples if sample[0] >= warmup]
    if len(late) < 2 * BLOCKS:
        return math.nan, math.nan
    times, memory, _ = np.array(late, float).T
    blocks = np.array_split(np.arange(len(times)), BLOCKS)
    hours = np.array([times[block].mean() for block in blocks]) / 3600
    sizes = np.array([memory[block].mean() for block in blocks]) / 1e6
    centred = hours - hours.mean()
    found = (centred * sizes).sum() / (centred**2).sum()
    residuals = sizes - sizes.mean() - found * centred
    error = math.sqrt((residuals**2).sum() / (BLOCKS - 2) / (centred**2).sum())
    return float(found), T_QUANTILE * error


def result_of(options, backend, watch, compilations):
    """What is written: the properties, each with whether it holds, and the samples."""
    growth, half = slope(watch.samples, watch.warm)
    properties = {
        "memory": {
            "holds": growth - half <= options.limit,
            "megabytes_an_hour": None if math.isnan(growth) else growth,
            "half_interval_95": None if math.isnan(half) else half,
            "limit": options.limit,
        },
        "counts": {
            "holds": watch.rewirings > 0 and not watch.wrong.count,
            "rewirings": watch.rewirings,
            "checks": watch.checks,
            "connections": watch.counts,
            "wrong": watch.wrong.count,
            "first": watch.wrong,
        },
        "compilations": {
            "holds": compilations.is_warm and not compilations.late,
            "all": len(compilations.times),
            "after_warmup": compilations.late,
            "first": dict(compilations.places),
        },
        "loss": {"holds": watch.epochs > 0 and not watch.losses.count, "first": watch.losses},
    }
    return {
        "backend": backend,
        "options": {name: str(value) for name, value in vars(options).items()},
        "minutes": watch.seconds / 60,
        "warmup_minutes": watch.warm / 60 if compilations.is_warm else None,
        "steps": watch.steps,
        "epochs": watch.epochs,
        "properties": properties,
        "compiled_at": [moment - watch.began for moment in compilations.times],
        "samples": dict(zip(("seconds", "bytes", "steps"), zip(*watch.samples, strict=True), strict=True)),
    }


def write(path, text):
    temporary = path.with_name(f".partial-{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def plot(path, result):
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print(f"{path.name} was not drawn: pip install 'keras_selfish[plot]'")
        return
    memory = result["properties"]["memory"]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        np.array(result["samples"]["seconds"]) / 60, np.array(result["samples"]["bytes"]) / 1e6, linewidth=0.8
    )
    if result["warmup_minutes"] is not None:
        axes.axvline(result["warmup_minutes"], color="0.5", linestyle=":", label="end of the warm-up")
        axes.legend(loc="lower right")
    growth = "memory not judged"
    if memory["megabytes_an_hour"] is not None:
        growth = f"{memory['megabytes_an_hour']:+.2f} ± {memory['half_interval_95']:.2f} MB an hour"
    rewirings = result["properties"]["counts"]["rewirings"]
    axes.set_title(f"{result['backend']}: {growth}, {rewirings} rewirings in {result['steps']} steps")
    axes.set_xlabel("minutes")
    axes.set_ylabel("resident memory in MB")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main(given=None):
    options = arguments(given)
    from trainers import program  # which sets what TensorFlow reads when it is loaded

    program.keep_memory()
    # A service that is stopped ends as one that is interrupted by hand.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    import keras

    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax"):
        raise SystemExit(f"error: the backend must be tensorflow or jax. Received: KERAS_BACKEND={backend}")
    keras.utils.set_random_seed(0)
    compilations = Compilations(backend)
    watch = make_watch(options, compilations)
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(options, watch, pathlib.Path(folder))
    finally:
        if watch.samples:
            result = result_of(options, backend, watch, compilations)
            path = options.output / f"soak-{backend}.json"
            write(path, json.dumps(result, indent=1) + "\n")
            plot(path.with_suffix(".png"), result)
            print(f"Wrote {path}")
    for name, found in result["properties"].items():
        figures = {key: value for key, value in found.items() if key not in ("holds", "connections")}
        print(f"{name:12} {'holds' if found['holds'] else 'FAILS'}  {figures}")
    return 0 if all(found["holds"] for found in result["properties"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
