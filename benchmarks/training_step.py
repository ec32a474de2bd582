"""What sparsity costs a training step: the masked model against the same model without a mask.

Usage: python -m benchmarks.training_step [--units 256] [--rounds 3]

Two LSTM layers, batch 20, 35 time steps, SNT-ASGD with clipping, on random tokens. `sparse` has masks at
sparsity 0.67, `unmasked` none, `keras` is made of plain Keras layers with SGD and carries no state.
"""

import argparse
import json
import resource
import statistics
import time

import numpy as np

from benchmarks.processes import alternate, machine, median

VARIANTS = ("sparse", "unmasked", "keras")
BATCH, TIME_STEPS = 20, 35


def make_model(variant, units, vocabulary, dtype):
    import keras

    from keras_selfish import SNTASGD, LanguageModel, TokenCrossEntropy

    if variant == "keras":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        keras.config.set_dtype_policy(dtype)
        layers = [keras.Input((None,), batch_size=BATCH, dtype="int32")]
        layers += [keras.layers.Embedding(vocabulary, units), keras.layers.Dropout(0.25)]
        for _ in range(2):
            layers += [keras.layers.LSTM(units, return_sequences=True), keras.layers.Dropout(0.25)]
        model = keras.Sequential([*layers, keras.layers.Dense(vocabulary)])
        model.compile(keras.optimizers.SGD(0.4, global_clipnorm=0.25, weight_decay=1.2e-6), loss=loss)
        return model
    model = LanguageModel(vocabulary, units, sparsity=0.67 if variant == "sparse" else 0.0, dtype=dtype)
    model.compile(SNTASGD(0.4, global_clipnorm=0.25, weight_decay=1.2e-6), loss=TokenCrossEntropy())
    return model


def measure(variant, units, vocabulary, steps, dtype):
    """Seconds of the first step and the median of the others; peak memory in bytes."""
    import keras

    from keras_selfish.data import Windows

    model = make_model(variant, units, vocabulary, dtype)
    tokens = np.random.default_rng(0).integers(0, vocabulary, BATCH * (TIME_STEPS * steps + 1))
    data = Windows(tokens, BATCH, TIME_STEPS).dataset()
    if variant == "keras":
        data = data.map(lambda inputs, targets: (inputs["tokens"], targets))
    seconds = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.began = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # waits for the step
            seconds.append(time.perf_counter() - self.began)

    model.fit(data, verbose=0, shuffle=False, callbacks=[Clock()])
    return {
        "first": seconds[0],
        "step": statistics.median(seconds[2:]),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--variant", choices=VARIANTS)
    options = parser.parse_args()
    if options.variant:
        sizes = (options.units, options.vocabulary, options.steps)
        print(json.dumps(measure(options.variant, *sizes, options.dtype)))
        return
    passed_on = [f"--{name}={getattr(options, name)}" for name in ("units", "vocabulary", "steps", "dtype")]
    results = alternate("benchmarks.training_step", VARIANTS, passed_on, options.rounds)
    print(machine())
    print(f"2 x {options.units} units, batch {BATCH}, {TIME_STEPS} time steps, {options.dtype}")
    print(f"{'variant':10} {'step ms':>9} {'ratio':>7} {'first s':>8} {'tokens/s':>10} {'peak MB':>9}")
    base = median(results["unmasked"], "step")
    for variant in VARIANTS:
        step = median(results[variant], "step")
        first, memory = median(results[variant], "first"), median(results[variant], "memory")
        print(
            f"{variant:10} {1000 * step:9.1f} {step / base:7.3f} {first:8.2f} "
            f"{BATCH * TIME_STEPS / step:10.0f} {memory / 1e6:9.0f}"
        )


if __name__ == "__main__":
    main()
