"""Reading texts with a language model inside a graph. Imported only where Keras runs on TensorFlow."""

import tensorflow as tf

from keras_selfish.ordering import after

# Time steps whose logits are held at a time, so that a text may be of any length.
WINDOW = 64
# Fewer are not worth a window of their own, though rows that are at their end are then read on.
SHORTEST_WINDOW = 8
# Well above the smallest float32 that has all its bits, 1.2e-38.
LEAST_PROBABILITY = 1e-30


class Reader:
    """A stepwise language model that reads rows of tokens, in float32.

    Args:
        stepwise: A Functional model from `[tokens, state, ...]` to `[logits, state, ...]`, without masks.
        packed: The `PackedVariables` of the model that take the place of its own. Default None.

    Attributes:
        run: Function from tokens, int32 (batch, time), and a dict of states, float32 (batch, width), to
            logits, float32 (batch, time, vocabulary), and the states after the last token.
        widths: Dict from the name of each state to its width.
        vocabulary_size: Number of tokens in the vocabulary.
    """

    def __init__(self, stepwise, packed=None):
        self._stepwise = stepwise
        self._packed = packed
        self._states = stepwise.inputs[1:]
        self.widths = {state.name: state.shape[-1] for state in self._states}
        self.vocabulary_size = stepwise.outputs[0].shape[-1]
        specs = {name: tf.TensorSpec((None, width)) for name, width in self.widths.items()}
        # Packed variables are in use around it.
        self.run = self._run if packed else traced(self._run, tf.TensorSpec((None, None), tf.int32), specs)

    def once(self, function, *specs):
        """A function that runs the model and is traced once.

        Packed variables are read by what calls it, and passed on: TensorFlow looks for a variable that is
        read in a function within a function on the device that calls.
        """
        if self._packed is None:
            return traced(function, *specs)

        def with_weights(weights, *args):
            with self._packed.in_use(weights):
                return function(*args)

        once = traced(with_weights, self._packed.specs(), *specs)
        return lambda *args: once(self._packed.resource.read(), *args)

    def initial_state(self, batch_size):
        """The zero states of a batch, a dict of float32 tensors (batch, width)."""
        return {name: tf.zeros((batch_size, width)) for name, width in self.widths.items()}

    def _run(self, tokens, states):
        inputs = [tf.cast(states[state.name], state.dtype) for state in self._states]
        logits, *finals = self._stepwise([tokens, *inputs], training=False)
        finals = {name: tf.cast(final, tf.float32) for name, final in zip(self.widths, finals, strict=True)}
        return tf.cast(logits, tf.float32), finals

    def read(self, tokens, lengths, fold, folded):
        """Reads rows of tokens from zero states, window by window, and folds the logits of each into a value.

        A window ends where the shortest row left does, if that is no shorter than `SHORTEST_WINDOW`, and rows
        at their end are read no further: padding costs little time, and no memory.

        Args:
            tokens: int32 (batch, time), with the longest rows first.
            lengths: int32 (batch,), how many tokens of each row are read.
            fold: Function `(folded, start, logits)` that returns the next `folded`, where `start` is the time
                of the first of logits (rows that are left, time, vocabulary).
            folded: Tensor to begin with; its shape may change.

        Returns:
            The last `folded`, and the states after the last window of the rows that were left in it.
        """
        longest = tf.reduce_max(tf.concat([[0], lengths], 0))

        def read_window(start, folded, states):
            left = tf.math.count_nonzero(lengths > start, dtype=tf.int32)
            size = tf.clip_by_value(lengths[left - 1] - start, SHORTEST_WINDOW, WINDOW)
            size = tf.minimum(size, longest - start)
            states = {name: state[:left] for name, state in states.items()}
            logits, states = self.run(tokens[:left, start : start + size], states)
            return start + size, fold(folded, start, logits), states

        _, folded, states = tf.while_loop(
            lambda start, *_: start < longest,
            read_window,
            [0, folded, self.initial_state(tf.shape(tokens)[0])],
            shape_invariants=[
                tf.TensorShape(()),
                tf.TensorShape([None] * folded.shape.rank),
                {name: tf.TensorShape((None, width)) for name, width in self.widths.items()},
            ],
            parallel_iterations=1,  # several windows' logits at a time would take as much more memory
        )
        return folded, states

    def log_probabilities(self, tokens, lengths):
        """The log-probability of each token but the first, given those before it.

        Args:
            tokens: int32 (batch, time).
            lengths: int32 (batch,), number of tokens of each row; what follows them may be any ids.

        Returns:
            float32 (batch, time - 1), in nats, 0 after a row's length.
        """
        counts = tf.maximum(lengths - 1, 0)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        (inputs, targets, counts), order = longest_first(counts, inputs, targets, counts)

        def score_window(scores, start, logits):
            rows, size = tf.unstack(tf.shape(logits)[:2])
            window = log_probabilities_of(targets[:rows, start : start + size], logits)
            is_token = tf.sequence_mask(counts[:rows] - start, size)
            window = tf.where(is_token, window, 0.0)
            return tf.concat([scores, tf.pad(window, [[0, tf.shape(scores)[0] - rows], [0, 0]])], 1)

        scores, _ = self.read(inputs, counts, score_window, tf.zeros((tf.shape(tokens)[0], 0)))
        scores = tf.pad(scores, [[0, 0], [0, tf.shape(inputs)[1] - tf.shape(scores)[1]]])
        return tf.gather(scores, tf.math.invert_permutation(order))

    def last_logits(self, tokens, lengths):
        """The logits (batch, vocabulary) of what follows each row of tokens (batch, time), lengths over 0."""
        (tokens, lengths), order = longest_first(lengths, tokens, lengths)

        def keep_last(last, start, logits):
            rows, size = tf.unstack(tf.shape(logits)[:2])
            place = lengths[:rows] - 1 - start
            inside = (place >= 0) & (place < size)
            logits = tf.gather(logits, tf.clip_by_value(place, 0, size - 1), batch_dims=1)
            return tf.concat([tf.where(inside[:, tf.newaxis], logits, last[:rows]), last[rows:]], 0)

        zeros = tf.zeros((tf.shape(tokens)[0], self.vocabulary_size))
        last, _ = self.read(tokens, lengths, keep_last, zeros)
        return tf.gather(last, tf.math.invert_permutation(order))


def log_probabilities_of(targets, logits):
    """The log-probabilities (batch, time) of targets (batch, time) under logits (batch, time, vocabulary).

    TensorFlow's softmax takes less than half the time of its log-sum-exp, which is left to probabilities that
    float32 has too few bits for.
    """
    probabilities = tf.gather(tf.nn.softmax(logits), targets, batch_dims=2)
    return tf.cond(
        tf.reduce_all(probabilities > LEAST_PROBABILITY),
        lambda: tf.math.log(probabilities),
        lambda: tf.gather(logits, targets, batch_dims=2) - tf.reduce_logsumexp(logits, -1),
    )


def traced(function, *specs):
    """A function that is traced once: however often it is called, a SavedModel holds its graph once."""
    return tf.function(function, autograph=False, input_signature=specs).get_concrete_function()


def longest_first(lengths, *tensors):
    """The rows of tensors in the order of their lengths, and that order."""
    order = tf.argsort(lengths, direction="DESCENDING", stable=True)
    return [tf.gather(tensor, order) for tensor in tensors], order


def negative_sum(log_probabilities):
    """Minus the sum over each row, in float32, added up in float64: small terms count in long texts, too."""
    return tf.cast(tf.reduce_sum(tf.cast(-log_probabilities, tf.float64), -1), tf.float32)


def checked_ids(tokens, vocabulary_size, lengths=None):
    """Ids as int32, 0 after a row's length; an error in one sentence where one is no id.

    Args:
        tokens: int64 (batch, time).
        vocabulary_size: Ids are below this.
        lengths: int64 (batch,); None (default) for whole rows.
    """
    is_token = True if lengths is None else tf.sequence_mask(lengths, tf.shape(tokens)[1])
    # Of no ids at all the smallest is the largest integer, which is in order.
    smallest = tf.reduce_min(tf.where(is_token, tokens, tf.int64.max))
    largest = tf.reduce_max(tf.where(is_token, tokens, tf.int64.min))
    are_ids = require(
        (smallest >= 0) & (largest < vocabulary_size),
        f"`tokens` must be ids from 0 to {vocabulary_size - 1}, below the size of the vocabulary, "
        f"{vocabulary_size}. Received: ids from {{}} to {{}}",
        smallest,
        largest,
    )
    return tf.cast(tf.where(is_token, after(tokens, are_ids), 0), tf.int32)


def checked_lengths(lengths, tokens):
    """Lengths as they are; an error in one sentence where they are no lengths of rows of tokens."""
    rows, time_steps = tf.unstack(tf.shape(tokens, out_type=tf.int64))
    count = tf.size(lengths, tf.int64)
    one_each = require(
        count == rows,
        "`lengths` must have one entry for each row of `tokens`. Received: {} for {}",
        count,
        rows,
    )
    smallest, largest = tf.reduce_min(lengths), tf.reduce_max(lengths)
    inside = require(
        (smallest >= 0) & (largest <= time_steps),
        "`lengths` must be from 0 to the number of columns of `tokens`, {}. Received: lengths from {} to {}",
        time_steps,
        smallest,
        largest,
    )
    return after(lengths, one_each, inside)


def require(condition, message, *values):
    """An operation that fails unless a condition holds.

    Args:
        condition: Boolean tensor ().
        message: One sentence with a `{}` for each value.
        *values: Tensors ().

    Returns:
        The operation. Nothing waits for it but what is computed from a tensor that comes `after` it.
    """
    return tf.debugging.Assert(condition, [tf.strings.format(message, values)])
