"""The logarithm of a mixture of softmaxes, one expert after the other."""

import keras
from keras import ops

from keras_selfish.ordering import after


def log_mixture(latents, log_priors, decoder, bias):
    """Log-probabilities of a mixture of softmaxes that share a decoder.

        log sum_k exp(log_priors_k) softmax(latents_k @ decoder + bias)

    It is computed in log space, so that improbable tokens have a finite logarithm and a gradient, and expert
    by expert: of the (rows, experts, vocabulary) numbers only one expert's stand in memory at a time, in the
    gradient as well, which computes them again: one product more, four instead of three per expert.

    Args:
        latents: `(rows, experts, latent_units)`.
        log_priors: Float32 `(rows, experts)`, logarithms of the weights of the experts.
        decoder: `(latent_units, vocabulary)`, of the dtype of the latents.
        bias: Float32 `(vocabulary,)`.

    Returns:
        Float32 `(rows, vocabulary)`.

    Example:

    >>> from keras import ops
    >>> halves = ops.log(ops.full((1, 2), 0.5))
    >>> outputs = log_mixture(ops.zeros((1, 2, 3)), halves, ops.ones((3, 4)), ops.zeros((4,)))
    >>> [round(float(probability), 3) for probability in ops.exp(outputs)[0]]
    [0.25, 0.25, 0.25, 0.25]

    Reference: Yang et al. 2018, "Breaking the Softmax Bottleneck", arXiv 1711.03953, equation 4.
    """

    def function(latents, log_priors, decoder, bias):
        outputs, log_sums = _forward(latents, log_priors, decoder, bias)

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            return _backward(latents, log_priors, decoder, bias, outputs, log_sums, upstream)

        return outputs, gradient

    if isinstance(latents, keras.KerasTensor):  # of which Keras's custom gradients know nothing
        return _forward(latents, log_priors, decoder, bias)[0]
    return ops.custom_gradient(function)(latents, log_priors, decoder, bias)


def _logits(latents, index, decoder, bias, *done):
    """The logits (rows, vocabulary) of one expert in float32, after what is `done`."""
    latent = latents[:, index]
    if not isinstance(latent, keras.KerasTensor):
        latent = after(latent, *done)
    logits = ops.matmul(latent, decoder)
    return ops.cast(logits, "float32") + bias


def _forward(latents, log_priors, decoder, bias):
    """Returns the log-probabilities and each expert's logarithm of the sum of its exponentials."""
    largest = total = None
    log_sums = []
    for index in range(latents.shape[1]):
        done = () if largest is None else (largest, total)
        logits = _logits(latents, index, decoder, bias, *done)
        log_sums.append(ops.logsumexp(logits, axis=-1))
        terms = logits + ops.expand_dims(log_priors[:, index] - log_sums[-1], -1)
        if largest is None:
            largest, total = terms, ops.ones_like(terms)
            continue
        # The sum is total * exp(largest): one exponential a term, and one logarithm at the end.
        smaller = ops.exp(-ops.abs(terms - largest))
        total = ops.where(terms > largest, total * smaller + 1, total + smaller)
        largest = ops.maximum(terms, largest)
    return largest + ops.log(total), ops.stack(log_sums, axis=1)


def _backward(latents, log_priors, decoder, bias, outputs, log_sums, upstream):
    """Returns the gradients of the four arguments of `log_mixture`."""
    transposed = ops.transpose(decoder)
    d_latents, d_log_priors, d_decoder, d_bias = [], [], 0, 0
    for index in range(latents.shape[1]):
        done = (d_decoder, d_latents[-1]) if d_latents else ()
        logits = _logits(latents, index, decoder, bias, *done)
        logits = logits - log_sums[:, index : index + 1]  # now logarithms of the expert's softmax
        # The expert's share of each probability, times what is asked of it.
        shares = upstream * ops.exp(logits + log_priors[:, index : index + 1] - outputs)
        share = ops.sum(shares, axis=-1, keepdims=True)
        d_logits = shares - ops.exp(logits) * share
        d_bias = d_bias + ops.sum(d_logits, axis=0)
        d_logits = ops.cast(d_logits, latents.dtype)
        d_log_priors.append(share)
        d_latents.append(ops.matmul(d_logits, transposed))
        product = ops.matmul(ops.transpose(latents[:, index]), d_logits)
        d_decoder = d_decoder + ops.cast(product, "float32")
    return (
        ops.stack(d_latents, axis=1),
        ops.concatenate(d_log_priors, axis=1),
        ops.cast(d_decoder, decoder.dtype),
        d_bias,
    )
