"""Whether a step reads a variable before or after it is assigned, in the graph that TensorFlow runs."""

import collections
import os
import subprocess
import sys

import pytest

# Tiles of 32 weights: the first matrix is read in two, by a loop.
PROGRAM = """
import keras, numpy as np
from keras_selfish import SwitchedDense, SwitchedModel, SwitcherNetwork

network = keras.Sequential([keras.Input((6,)), SwitchedDense(8, "relu"), SwitchedDense(4)])
turns = {"task_steps": 2, "switcher_steps": 1, "warmup_steps": 0}
model = SwitchedModel(network, SwitcherNetwork(tile_size=32), **turns, target_sparsity=0.5)
model.compile("adam", "mse", switcher_optimizer="adam", jit_compile=False)
for _ in range(3):
    model.train_on_batch(np.ones((2, 6)), np.ones((2, 4)))
"""


def test_each_assignment_is_before_or_after_each_reading(tmp_path):
    """Or a run depends on what other threads do.

    TensorFlow orders them when it traces a step, but simplifies the graph before it runs.
    """
    tf = pytest.importorskip("tensorflow")
    from google.protobuf import text_format

    dumps = {"TF_DUMP_GRAPH_PREFIX": str(tmp_path), "TF_DUMP_GRAPH_NAME_FILTER": "one_step_on_data"}
    subprocess.run([sys.executable, "-c", PROGRAM], env={**os.environ, **dumps}, check=True, timeout=300)
    paths = list(tmp_path.glob("*.before_partition.pbtxt"))  # the last form of the whole graph
    assert len(paths) == 3  # the network's, the switcher's, and that in which it decides a last time
    assigned = 0
    for path in paths:
        graph = text_format.Parse(path.read_text(), tf.compat.v1.GraphDef())
        followers = followers_of(graph)
        for operations in operations_by_variable(graph, tf.resource.as_datatype_enum):
            for one in (name for name, kind in operations if kind.startswith("Assign")):
                after = reached_from(one, followers)
                for other, _ in operations:
                    ordered = other == one or other in after or one in reached_from(other, followers)
                    assert ordered, f"{one} and {other}"
                assigned += 1
    assert assigned > 50


def followers_of(graph):
    """The operations that wait for each operation, a dict of lists of names."""
    followers = collections.defaultdict(list)
    for node in graph.node:
        for name in node.input:
            followers[name.removeprefix("^").partition(":")[0]].append(node.name)
    return followers


def reached_from(name, followers):
    found, left = set(), [name]
    while left:
        new = set(followers[left.pop()]) - found
        found |= new
        left.extend(new)
    return found


def operations_by_variable(graph, resource):
    """For each variable a list of the names and kinds of the operations that are given it."""
    variables = {
        node.name: [] for node in graph.node if node.op == "_Arg" and node.attr["T"].type == resource
    }
    for node in graph.node:
        for name in node.input:
            if name.partition(":")[0] in variables:
                variables[name.partition(":")[0]].append((node.name, node.op))
    return [operations for operations in variables.values() if operations]
