"""Continuing texts with a language model inside a graph. Imported only where Keras runs on TensorFlow."""

from typing import NamedTuple

import tensorflow as tf

from keras_selfish.export.reading_tensorflow import require
from keras_selfish.ordering import after


class Option(NamedTuple):
    """An option of `generate`, of which each prompt has its own.

    Attributes:
        dtype: Its type.
        holds: Function from a tensor to the truth of the rule that it must obey.
        rule: The rule in words.
    """

    dtype: tf.DType
    holds: object
    rule: str


OPTIONS = {
    "length": Option(tf.int32, lambda value: value > 0, "at least 1"),
    "temperature": Option(
        tf.float32, lambda value: (value >= 0) & tf.math.is_finite(value), "finite and at least 0"
    ),
    "top_k": Option(tf.int32, lambda value: value >= 0, "at least 0, which is no limit"),
    "top_p": Option(tf.float32, lambda value: (value > 0) & (value <= 1), "over 0 and at most 1"),
    "seed": Option(tf.int32, tf.ones_like, "any integer"),
}


def for_each(texts, name, value, holds, rule):
    """An option of each text, given for each or once; an error in one sentence where it breaks its rule.

    Args:
        texts: Tensor (batch,).
        name: Name of the option.
        value: Tensor () or (batch,), of a rank that need not be known.
        holds: Function from a tensor to a tensor of booleans.
        rule: The rule that it checks, in words.

    Returns:
        Tensor (batch,).
    """
    rows = tf.size(texts)
    fits = (tf.rank(value) < 2) & ((tf.size(value) == 1) | (tf.size(value) == rows))
    one_each = require(
        fits,
        f"`{name}` must be a number, or one for each text, of which there are {{}}. Received: shape {{}}",
        rows,
        tf.shape(value),
    )
    flat = tf.reshape(value, (-1,))
    within = require(
        tf.reduce_all(tf.cast(holds(flat), tf.bool)),
        f"`{name}` must be {rule}. Received: from {{}} to {{}}",
        tf.reduce_min(flat),
        tf.reduce_max(flat),
    )
    flat = after(flat, one_each, within)
    # Not a broadcast, which refuses shapes before the sentence above can.
    return tf.gather(flat, tf.minimum(tf.range(rows), tf.size(flat) - 1))


def continuation(reader, tokens, lengths, never, *, length, temperature, top_k, top_p, seed):
    """Draws tokens that follow rows of tokens. No row is changed by those beside it.

    Args:
        reader: The `Reader` of the model.
        tokens: int32 (batch, time).
        lengths: int32 (batch,), over 0, number of tokens of each row.
        never: Id of a token that is not drawn, or None.
        length: int32 (batch,), over 0, how many tokens follow.
        temperature: float32 (batch,), as in `sample`.
        top_k: int32 (batch,), as in `sample`.
        top_p: float32 (batch,), as in `sample`.
        seed: int32 (batch,).

    Returns:
        int32 (batch, largest length).
    """
    longest = tf.reduce_max(tf.concat([[0], length], 0))
    uniform = uniform_numbers(seed, longest)
    # What all rows have is read in one go, the last token of the shortest and all that follows one by one:
    # while some rows still read what is given, others draw.
    common = tf.reduce_min(tf.concat([tf.shape(tokens)[1:], lengths], 0)) - 1
    common_of_each = tf.fill(tf.shape(lengths), common)
    _, states = reader.read(tokens, common_of_each, lambda nothing, *_: nothing, tf.zeros(()))
    steps = tf.reduce_max(tf.concat([[0], lengths + length - 1 - common], 0))

    def draw(step, token, states, drawn):
        time = common + step
        given = tokens[:, tf.minimum(time, tf.shape(tokens)[1] - 1)]
        token = tf.where(time < lengths, given, token)
        logits, states = reader.run(token[:, tf.newaxis], states)
        logits = logits[:, -1]
        if never is not None:
            logits = tf.where(tf.range(reader.vocabulary_size) == never, -float("inf"), logits)
        place = tf.clip_by_value(time + 1 - lengths, 0, longest - 1)
        token = sample(logits, tf.gather(uniform, place, batch_dims=1), temperature, top_k, top_p)
        return step + 1, token, states, tf.concat([drawn, token[:, tf.newaxis]], 1)

    drawn = tf.zeros((tf.shape(lengths)[0], 0), tf.int32)
    *_, drawn = tf.while_loop(
        lambda step, *_: step < steps,
        draw,
        [0, tf.zeros_like(lengths), states, drawn],
        shape_invariants=[
            tf.TensorShape(()),
            tf.TensorShape((None,)),
            {name: tf.TensorShape((None, width)) for name, width in reader.widths.items()},
            tf.TensorShape((None, None)),
        ],
        parallel_iterations=1,
    )
    places = (lengths - 1 - common)[:, tf.newaxis] + tf.range(longest)
    return tf.gather(drawn, tf.minimum(places, steps - 1), batch_dims=1)


def uniform_numbers(seeds, count):
    """Numbers in [0, 1), a row for each seed that depends on this seed only.

    Args:
        seeds: int32 (batch,).
        count: int32 (), how many numbers of each; more of them begin with the same ones.

    Returns:
        float32 (batch, count).
    """
    rows = tf.map_fn(
        lambda seed: tf.random.stateless_uniform([count], tf.stack([seed, 0]), alg="philox"),
        tf.concat([seeds, [0]], 0),  # of no rows TensorFlow would not know the shape
        fn_output_signature=tf.TensorSpec((None,), tf.float32),
    )
    return rows[:-1]


def sample(logits, uniform, temperature, top_k, top_p):
    """Draws a token of each row by inverting the distribution function at a uniform number.

    Args:
        logits: float32 (batch, vocabulary); -inf for what is never drawn.
        uniform: float32 (batch,), in [0, 1).
        temperature: float32 (batch,), by which logits are divided; 0 takes the likeliest token, of several
            that of the smallest id.
        top_k: int32 (batch,); with a number over 0 only the `top_k` likeliest tokens are drawn, and those
            just as likely as the last of them.
        top_p: float32 (batch,), in (0, 1]; with a number below 1 only the fewest likeliest tokens whose
            probabilities add up to it, after `top_k`, and those just as likely as the last of them.

    Returns:
        int32 (batch,), ids.
    """
    is_greedy = temperature == 0.0
    below = logits - tf.reduce_max(logits, -1, keepdims=True)
    below /= tf.where(is_greedy, 1.0, temperature)[:, tf.newaxis]
    is_limited = tf.reduce_any(~is_greedy & ((top_k > 0) | (top_p < 1.0)))
    # The sort that the limits need takes more time than everything else.
    smallest = tf.cond(
        is_limited,
        lambda: _smallest_kept(below, top_k, top_p),
        lambda: tf.fill(tf.shape(temperature), -float("inf")),
    )
    weights = tf.where(below >= smallest[:, tf.newaxis], tf.exp(below), 0.0)
    cumulative = tf.cumsum(weights, -1)
    # Below the sum in float32, too: the largest number is a whole step below 1.
    drawn = tf.argmax(cumulative > (uniform * cumulative[:, -1])[:, tf.newaxis], -1)
    return tf.cast(tf.where(is_greedy, tf.argmax(logits, -1), drawn), tf.int32)


def _smallest_kept(logits, top_k, top_p):
    """The smallest logit (batch,) of those that `top_k` and `top_p` leave."""
    descending = tf.sort(logits, -1, direction="DESCENDING")
    size = tf.shape(logits)[-1]
    kept = tf.sequence_mask(tf.where(top_k > 0, tf.minimum(top_k, size), size), size)
    probabilities = tf.nn.softmax(tf.where(kept, descending, -float("inf")))
    below = tf.cumsum(probabilities, -1, exclusive=True)
    # Rounded, the sum may reach 1 before the last token: no limit is not a limit of 1.
    kept &= (below < top_p[:, tf.newaxis]) | (top_p[:, tf.newaxis] == 1.0)
    last = tf.maximum(tf.math.count_nonzero(kept, -1), 1) - 1
    return tf.gather(descending, last, batch_dims=1)
