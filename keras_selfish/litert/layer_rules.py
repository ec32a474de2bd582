"""What layers are in LiteRT that look at the values of their inputs, or loop over time.

A rule is a function of the `Lowering`, the layer, and its arguments, as those of operations are.
"""

import contextlib
import inspect
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_selfish.backend import BACKEND
from keras_selfish.cloning import with_inner
from keras_selfish.keras_internals import DropoutRNNCell
from keras_selfish.litert.composed import softmax_over
from keras_selfish.litert.parts import (
    choose,
    in_dtype,
    join,
    reshape,
    rules_in,
    tile,
    transpose,
    zeros_like_batch,
)
from keras_selfish.litert.rules import OPERATIONS

LAYERS: dict[Any, Any] = {}


_layer_rule = rules_in(LAYERS)  # by their classes


@_layer_rule(keras.layers.Softmax)
def _softmax_layer(lowering, layer, x, mask=None):
    # Over several axes Keras wants values, not symbols.
    several = isinstance(layer.axis, (list, tuple)) and len(layer.axis) > 1

    def softmax(x):
        return softmax_over(x, tuple(layer.axis)) if several else layer.call(x)

    def masked(x, mask):
        kept = mask if mask.dtype == "bool" else mask > 0.5
        return ops.where(kept, softmax(ops.where(kept, x, -1e9)), 0.0)

    return lowering.call(softmax if mask is None else masked, (x,) if mask is None else (x, mask), {})


@_layer_rule(keras.layers.PReLU)
def _prelu(lowering, layer, x):
    alpha = ops.convert_to_numpy(ops.cast(layer.alpha, "float32"))
    return lowering.call(lambda x: ops.relu(x) - ops.relu(-x) * alpha, (x,), {})


@_layer_rule(keras.layers.Rescaling)
def _rescaling(lowering, layer, x):
    scale, offset = (np.asarray(value, np.float32) for value in (layer.scale, layer.offset))
    x = in_dtype(lowering, x, "float32")
    x = OPERATIONS["Multiply"](lowering, layer, x, scale)
    return OPERATIONS["Add"](lowering, layer, x, offset)


@_layer_rule(keras.layers.Normalization)
def _normalization(lowering, layer, x):
    mean = keras.ops.convert_to_numpy(layer.mean)
    deviation = np.maximum(np.sqrt(keras.ops.convert_to_numpy(layer.variance)), keras.config.epsilon())
    factor, offset = (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)
    x = in_dtype(lowering, x, "float32")
    if np.any(factor != 1):
        x = OPERATIONS["Multiply"](lowering, layer, x, factor)
    return OPERATIONS["Add"](lowering, layer, x, offset)


@_layer_rule(keras.layers.Discretization)
def _discretization(lowering, layer, x):
    boundaries = np.asarray(layer.bin_boundaries, np.float32)
    if layer.output_mode == "int":
        return lowering.call(lambda x: ops.digitize(x, boundaries), (x,), {})
    encoded = _encoding(lowering, layer, layer.output_mode, len(boundaries) + 1)
    return lowering.call(lambda x: encoded(ops.digitize(x, boundaries)), (x,), {})


@_layer_rule(keras.layers.CategoryEncoding)
def _category_encoding(lowering, layer, x, count_weights=None):
    if count_weights is not None:
        raise lowering.refusal("weights of categories")
    encoded = _encoding(lowering, layer, layer.output_mode, layer.num_tokens)
    return lowering.call(encoded, (in_dtype(lowering, x, "int32"),), {})


def _encoding(lowering, layer, mode, count):
    """The function that makes vectors of categories, as layers of preprocessing do."""
    if mode not in ("one_hot", "multi_hot", "count") or layer.sparse:
        raise lowering.refusal(f"categories as sparse tensors or in the mode {mode!r}")

    def encode(ids):
        vectors = ops.one_hot(ids, count)
        if mode == "one_hot":
            return ops.squeeze(vectors, -2) if len(ids.shape) > 1 and ids.shape[-1] == 1 else vectors
        if len(ids.shape) < 2:
            return vectors
        return ops.max(vectors, axis=-2) if mode == "multi_hot" else ops.sum(vectors, axis=-2)

    return encode


@_layer_rule(keras.layers.TimeDistributed)
def _time_distributed(lowering, layer, x, mask=None):
    if mask is not None and "mask" in inspect.signature(layer.layer.call).parameters:
        raise lowering.refusal("masked time steps in a layer that `TimeDistributed` hands them to")
    flat = reshape(lowering, x, (None, *x.shape[2:]))
    outputs = lowering.operation(layer.layer, (flat,), {})
    return keras.tree.map_structure(
        lambda y: reshape(lowering, y, (x.shape[0], x.shape[1], *y.shape[1:])), outputs
    )


@_layer_rule(keras.layers.Bidirectional)
def _bidirectional(lowering, layer, x, initial_state=None, mask=None):
    half = None if initial_state is None else len(initial_state) // 2
    states = (None, None) if half is None else (initial_state[:half], initial_state[half:])
    outputs, finals = [], []
    for inner, state in zip((layer.forward_layer, layer.backward_layer), states, strict=True):
        output = lowering.operation(inner, (x,), {"initial_state": state, "mask": mask})
        output, *final = output if isinstance(output, (list, tuple)) else [output]
        outputs.append(output)
        finals += final
    if layer.return_sequences:
        reverse = lowering.constant(np.array([1], np.int32))
        outputs[1] = lowering.graph.apply("REVERSE_V2", [outputs[1], reverse], outputs[1].shape)
    if layer.merge_mode == "concat":
        merged = [join(lowering, outputs, -1)]
    elif layer.merge_mode is None:
        merged = outputs
    else:
        code = "MUL" if layer.merge_mode == "mul" else "ADD"
        merged = [lowering.graph.apply(code, outputs, outputs[0].shape)]
        if layer.merge_mode == "ave":
            merged = [
                lowering.graph.apply("MUL", [merged[0], lowering.constant(np.float32(0.5))], merged[0].shape)
            ]
    if layer.return_state:
        return [*merged, *finals]
    return merged[0] if len(merged) == 1 else tuple(merged)


@_layer_rule(keras.layers.RNN)
def _recurrent(lowering, layer, x, initial_state=None, mask=None):
    if layer.stateful:
        raise lowering.refusal(
            "a recurrent layer that keeps its state (`stateful`); return the state instead"
        )
    sizes = keras.tree.flatten(layer.cell.state_size)
    if len(x.shape) != 3:
        raise lowering.refusal("a recurrent layer over images")
    states = keras.tree.flatten(initial_state) if initial_state is not None else []
    states = [lowering.constant(state) for state in states]
    states = states or [zeros_like_batch(lowering, x, size) for size in sizes]
    last = zeros_like_batch(lowering, x, _output_width(layer))
    if BACKEND == "jax" and mask is not None:  # what a padded step repeats where there is none before it
        last = states[0]
    if x.shape[1] == 1:
        row = reshape(lowering, x, (x.shape[0], *x.shape[2:]))
        output, states = _step(lowering, layer, row, mask, last, states)
        outputs = reshape(lowering, output, (output.shape[0], 1, *output.shape[1:]))
    else:
        output, outputs, states = _loop(lowering, layer, x, mask, last, states)
    output = outputs if layer.return_sequences else output
    return [output, *states] if layer.return_state else output


def _output_width(layer):
    sizes = keras.tree.flatten(layer.cell.state_size)
    return getattr(layer.cell, "output_size", sizes[0])


def _step(lowering, layer, x, is_real, last, states):
    """A time step of a recurrent layer.

    Args:
        lowering: The `Lowering`.
        layer: The layer.
        x: The inputs of the step, (batch, features).
        is_real: bool (batch, 1), False where the step is padded; or None.
        last: The output of the step before.
        states: List of the states before the step.

    Returns:
        The output, and the list of the states after the step.
    """
    cell = layer.cell
    structured = keras.tree.pack_sequence_as(cell.state_size, states)
    if not isinstance(structured, (list, tuple)):
        structured = [structured]
    with _without_dropout(cell):
        output, after = lowering.within_path(cell.name, lambda: lowering.call(cell.call, (x, structured), {}))
    after = keras.tree.flatten(after)
    if is_real is None:
        return output, after
    if layer.zero_output_for_mask:
        last = np.float32(0)
    output = choose(lowering, is_real, output, last)
    return output, [choose(lowering, is_real, *pair) for pair in zip(after, states, strict=True)]


@contextlib.contextmanager
def _without_dropout(cell):
    """Within the block a cell draws no dropout masks: some do so in inference, too, and use none."""
    cells = [inner for inner in with_inner(cell) if isinstance(inner, DropoutRNNCell)]
    names = ("dropout", "recurrent_dropout")
    rates = [(inner, name, getattr(inner, name)) for inner in cells for name in names]
    for inner, name, _ in rates:
        setattr(inner, name, 0.0)
    try:
        yield
    finally:
        for inner, name, rate in rates:
            setattr(inner, name, rate)


def _loop(lowering, layer, x, mask, last, states):
    """All time steps: the last output, all outputs if they are asked for, and the last states."""
    graph, steps = lowering.graph, x.shape[1]
    batch, width = x.shape[0], last.shape[-1]

    def in_time_order(tensor):
        tensor = transpose(lowering, tensor, (1, 0, *range(2, len(tensor.shape))))
        first = lowering.constant(np.array([0], np.int32))
        if layer.go_backwards:
            tensor = graph.apply("REVERSE_V2", [tensor, first], tensor.shape, dtype=tensor.dtype)
        return tensor

    sequences = [in_time_order(x)]
    if mask is not None:
        mask = lowering.constant(mask)
        sequences.append(in_time_order(reshape(lowering, mask, (*mask.shape, 1))))
    carried = [lowering.constant(np.zeros((1,), np.int32)), last, *states]
    if layer.return_sequences:
        zeros = reshape(lowering, zeros_like_batch(lowering, x, width), (1, batch, width))
        carried.append(tile(lowering, zeros, [steps, 1, 1]))
    carried += sequences

    condition, body = graph.file.graph(f"{layer.name}_condition"), graph.file.graph(f"{layer.name}_step")
    within = [[side.tensor(t.shape, t.dtype) for t in carried] for side in (condition, body)]
    condition.subgraph.inputs = [tensor.index for tensor in within[0]]
    limit = condition.constant(np.array([steps], np.int32))
    condition.subgraph.outputs = [condition.apply("LESS", [within[0][0], limit], (1,), dtype="bool").index]

    inner = lowering.within(body)
    time, last, *rest = within[1]
    before, collected, unchanged = (
        rest[: len(states)],
        rest[len(states) : -len(sequences)],
        rest[-len(sequences) :],
    )

    def row(sequence):
        at_time = body.apply("GATHER", [sequence, time], (1, *sequence.shape[1:]), dtype=sequence.dtype)
        return reshape(inner, at_time, sequence.shape[1:])

    is_real = row(unchanged[1]) if len(unchanged) == 2 else None
    output, after = _step(inner, layer, row(unchanged[0]), is_real, last, before)
    if collected:
        begin = [time, body.constant(np.zeros(2, np.int32))]
        begin = body.apply("CONCATENATION", begin, (3,), dtype="int32", axis=0)
        update = reshape(inner, output, (1, batch, width))
        collected = [body.apply("DYNAMIC_UPDATE_SLICE", [collected[0], update, begin], (steps, batch, width))]
    time = body.apply("ADD", [time, body.constant(np.ones(1, np.int32))], (1,), dtype="int32")
    body.subgraph.inputs = [tensor.index for tensor in within[1]]
    body.subgraph.outputs = [t.index for t in (time, output, *after, *collected, *unchanged)]

    shapes = [tensor.shape for tensor in carried]
    results = graph.apply(
        "WHILE", carried, *shapes, condSubgraphIndex=condition.number, bodySubgraphIndex=body.number
    )
    for result, tensor in zip(results, carried, strict=True):
        graph.subgraph.tensors[result.index].type = graph.subgraph.tensors[tensor.index].type
    _, output, *rest = results
    outputs = transpose(lowering, rest[len(states)], (1, 0, 2)) if layer.return_sequences else None
    return output, outputs, rest[: len(states)]
