"""What tests of layers share: tables of options, gradients against differences, TensorFlow's loops."""

import itertools
import operator

import numpy as np
import pytest

# Of a `tf.compat.v1.GraphDef`.
FUNCTIONS_OF = operator.attrgetter("library.function")


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "pairwise(**values): the values of each argument of a test, which runs with so many combinations "
        "that every two values of different arguments occur together",
    )


def pytest_generate_tests(metafunc):
    for marker in metafunc.definition.iter_markers("pairwise"):
        metafunc.parametrize(list(marker.kwargs), pairwise(list(marker.kwargs.values())))


def pairwise(options):
    """Rows of one value of each option, in which every two values of different options occur together."""
    rows = []
    values = [(option, value) for option, values in enumerate(options) for value in range(len(values))]
    missing = {pair: None for pair in itertools.combinations(values, 2) if pair[0][0] != pair[1][0]}
    while missing:
        row = dict(next(iter(missing)))  # and of the other options what gives the most new pairs
        for option, values in enumerate(options):
            if option not in row:
                row[option] = max(
                    range(len(values)),
                    key=lambda value, o=option: sum(
                        tuple(sorted([(o, value), other])) in missing for other in row.items()
                    ),
                )
        for pair in itertools.combinations(sorted(row.items()), 2):
            missing.pop(pair, None)
        rows.append([values[row[option]] for option, values in enumerate(options)])
    return rows


@pytest.fixture(scope="session")
def assert_gradients_are_differences():
    """A function of a loss and the weights that it depends on: compares along a random direction of each."""
    import tensorflow as tf

    def check(loss, weights):
        with tf.GradientTape() as tape:
            value = loss()
        gradients = tape.gradient(value, [weight.value for weight in weights])
        for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            start = weight.numpy()
            direction = np.random.default_rng([10 + index, *weight.shape]).normal(size=weight.shape)
            if hasattr(weight, "masked_weight"):
                direction = direction * weight.masked_weight.mask.numpy()  # what does not exist does not move
            weight.assign(start + 1e-6 * direction)
            above = float(loss())
            weight.assign(start - 1e-6 * direction)
            below = float(loss())
            weight.assign(start)
            slope = float(tf.reduce_sum(gradient * direction))
            assert slope == pytest.approx((above - below) / 2e-6, rel=1e-6)

    return check


@pytest.fixture(scope="session")
def loop_bodies():
    """A function that lists what a compiled TensorFlow function runs in loops, forward and backward."""

    def bodies(function, *args):
        graph = function.get_concrete_function(*args).graph.as_graph_def()
        functions = {definition.signature.name: definition for definition in FUNCTIONS_OF(graph)}
        nodes = [*graph.node, *(node for definition in functions.values() for node in definition.node_def)]
        names = {node.attr["body"].func.name for node in nodes if "While" in node.op}
        return [functions[name] for name in names]

    return bodies
