"""How fast Keras's backend multiplies large square matrices here: what a training step could reach at most.

Usage: python -m benchmarks.matrix_peak [--dtype bfloat16] [--size 3072]

Prints one JSON object: operations per second of the fastest of several chains of products, a multiplication
and an addition being two.
"""

import argparse
import json
import time

import keras
from keras import ops

from benchmarks.options import positive

CHAIN, REPETITIONS = 4, 6


def measure(dtype, size):
    # Scaled so that the numbers of the chain neither vanish nor overflow.
    factor = ops.cast(keras.random.normal((size, size), stddev=size**-0.5, seed=0), dtype)

    @compiled
    def chain(product):
        for _ in range(CHAIN):
            product = ops.matmul(product, factor)
        return ops.cast(product[0, 0], "float32")

    seconds = []
    for _ in range(1 + REPETITIONS):
        began = time.perf_counter()
        float(chain(factor))  # waits for it
        seconds.append(time.perf_counter() - began)
    return {"operations_per_second": CHAIN * 2 * size**3 / min(seconds[1:])}


def compiled(function):
    """The function, compiled by Keras's backend: TensorFlow or JAX."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of numbers")
    parser.add_argument("--size", type=positive, default=3072, help="rows and columns (default: 3072)")
    options = parser.parse_args()
    print(json.dumps(measure(options.dtype, options.size)))


if __name__ == "__main__":
    main()
