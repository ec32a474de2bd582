"""What one rewiring costs: the rewiring of a whole model against one training step of it.

Usage: python -m benchmarks.rewiring [--units 1500] [--rounds 5]

The `ptb_lstm` model (66 million weights at 1500 units, density 0.33) at pruning rate 0.8, the optimizer's
state included.
"""

import argparse
import statistics
import time

import numpy as np

from benchmarks.processes import machine


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pruning_rate", type=float, default=0.8)
    options = parser.parse_args()

    from keras_selfish import SNTASGD, SelfishRewiring, TokenCrossEntropy, language_model
    from keras_selfish.data import Windows

    model = language_model("ptb_lstm", units=options.units)
    model.compile(
        SNTASGD(40.0, global_clipnorm=0.25, weight_decay=1.2e-6),
        loss=TokenCrossEntropy(),
    )
    tokens = np.random.default_rng(0).integers(0, 10_000, 20 * (35 * 3 + 1))
    rewiring = SelfishRewiring(options.pruning_rate)
    rewiring.set_model(model)
    model.fit(Windows(tokens, 20, 35).dataset(), verbose=0, shuffle=False)  # compiles
    steps, rewirings = [], []
    for number in range(options.rounds):
        began = time.perf_counter()
        model.fit(Windows(tokens, 20, 35).dataset(), verbose=0, shuffle=False)
        steps.append((time.perf_counter() - began) / 3)
        began = time.perf_counter()
        rewiring.rewire(options.pruning_rate, step=number)
        rewirings.append(time.perf_counter() - began)
    step, rewired = statistics.median(steps), statistics.median(rewirings)
    print(machine())
    print(
        f"2 x {options.units} units, pruning rate {options.pruning_rate}, median of {options.rounds} rounds"
    )
    print(f"training step {step:.3f} s, rewiring {rewired:.3f} s, ratio {rewired / step:.2f}")


if __name__ == "__main__":
    main()
