"""Selections of positions of arrays that may be divided among devices, on JAX.

A sort or a running sum over a divided array gathers it on every device. The limit is searched instead, bit by
bit: each of 32 passes counts what is below a value, so that nothing but one number a device is exchanged.
"""

import functools

import jax
import jax.numpy as jnp

TOP = 1 << 31


def uniform_numbers(like, seed):
    """As in `device_arrays.py`: the same numbers, however the array is divided."""
    return _drawing(like.shape, like.sharding)(seed)


@functools.lru_cache(maxsize=256)  # compiled once for each shape
def _drawing(shape, sharding):
    return jax.jit(lambda seed: jax.random.uniform(jax.random.key(seed), shape), out_shardings=sharding)


@jax.jit
def lowest_of(scores, among, number):
    """As in `device_arrays.py`."""
    ranks = _ranks(scores)
    limit = _nth_smallest([ranks], [among], number)
    below = among & (ranks < limit)
    ties = among & (ranks == limit)
    places = _places(scores.shape)
    last = _nth_smallest([places], [ties], number - jnp.sum(below))
    return below | (ties & (places <= last))


@jax.jit
def around_limit(scores, among, number):
    """As in `device_arrays.py`."""
    ranks = list(map(_ranks, scores))
    limit = _nth_smallest(ranks, among, number)
    return [
        (jnp.sum(each & (rank < limit)), jnp.sum(each & (rank == limit)))
        for rank, each in zip(ranks, among, strict=True)
    ]


def _ranks(scores):
    """Whole numbers in the order of the scores."""
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    # -0.0 becomes 0.0; an addition of 0, which would do it, XLA leaves out.
    bits = jnp.where(bits == jnp.uint32(TOP), jnp.uint32(0), bits)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(TOP))


def _nth_smallest(arrays, among, number):
    """The largest number that fewer than `number` values are below: the `number`-th smallest of all."""

    def step(index, limit):
        candidate = limit | (jnp.uint32(TOP) >> index.astype(jnp.uint32))
        counts = [jnp.sum(each & (values < candidate)) for values, each in zip(arrays, among, strict=True)]
        return jnp.where(sum(counts) < number, candidate, limit)

    return jax.lax.fori_loop(0, 32, step, jnp.uint32(0))


def _places(shape):
    """The number of each position, counted row by row."""
    places = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        places += jnp.uint32(stride) * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        stride *= shape[axis]
    return places
