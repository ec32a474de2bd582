"""How fast TensorFlow multiplies large square matrices here: what a training step could reach at most.

Usage: python -m benchmarks.matrix_peak [--dtype bfloat16] [--size 3072]

Prints one JSON object: operations per second of the fastest of several chains of products, a multiplication
and an addition being two.
"""

import argparse
import json
import time

from benchmarks.options import positive

CHAIN, REPETITIONS = 4, 6


def measure(dtype, size):
    import tensorflow as tf

    generator = tf.random.Generator.from_seed(0)
    # Scaled so that the numbers of the chain neither vanish nor overflow.
    factor = tf.cast(generator.normal((size, size)) * size**-0.5, dtype)

    @tf.function
    def chain(product):
        for _ in range(CHAIN):
            product = tf.matmul(product, factor)
        return product[0, 0]

    seconds = []
    for _ in range(1 + REPETITIONS):
        began = time.perf_counter()
        chain(factor).numpy()
        seconds.append(time.perf_counter() - began)
    return {"operations_per_second": CHAIN * 2 * size**3 / min(seconds[1:])}


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
