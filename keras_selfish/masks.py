"""Masks: which connections of a weight matrix exist.

A *mask* is a boolean array of the weight's shape, True where a connection exists. Masks are drawn with
an exact number of connections, single or in blocks, and travel with their weight: a layer that masks a
weight attaches a `MaskedWeight` to the variable, and `masked_weights(model)` finds them again. Rewiring,
export and reports know sparse layers through this protocol only.

`sparsity` is the fraction of zeros, `density` the fraction of connections.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_selfish import checks
from keras_selfish.typing import BlockShape, Distribution, Pattern, Shape, TensorLike

if TYPE_CHECKING:
    import keras
    import numpy.typing as npt

__all__ = [
    "DISTRIBUTIONS",
    "MaskedWeight",
    "active_counts",
    "densify",
    "redraw_masks",
    "is_n_of_m",
    "largest_mask",
    "largest_n_of_m_mask",
    "masked_weights",
    "n_of_m_mask",
    "nonzero_mask",
    "open_mask",
    "random_mask",
]

DISTRIBUTIONS = ("uniform", "erdos_renyi", "erk")


NEVER = -1  # a number that no forward pass has


@dataclasses.dataclass(eq=False)
class MaskedWeight:
    """A weight of a layer together with its mask.

    Args:
        weight: The trainable `keras.Variable`; exactly zero wherever the mask is False.
        mask: The non-trainable boolean `keras.Variable` of the same shape.
        gates: Names of the gates that the weight concatenates, `("i", "f", "c", "o")` for an LSTM; empty
            where there are none.
        gate_sizes: Width of each gate along the gate axis; empty (default) for equal parts.
        gate_axis: The axis along which the gates are concatenated.
        block_shape: Shape of the blocks in which connections are dropped and grown, over the last two axes
            (input, unit) of the weight; `(1, 1)` for single weights.
        n_of_m: `(n, m)` where exactly n of each m consecutive input weights of a unit exist, else None.
        initializer: The `keras.initializers.Initializer` of the weight before it is masked.
        looked_up: Whether rows of the weight are looked up and no product reads it, as in an embedding that
            is not tied: the gradient of a batch is zero in all the rows of tokens that are not in it.
    """

    weight: keras.Variable
    mask: keras.Variable
    gates: tuple[str, ...] = ()
    gate_sizes: tuple[int, ...] = ()
    gate_axis: int = -1
    block_shape: tuple[int, int] = (1, 1)
    n_of_m: tuple[int, int] | None = None
    initializer: keras.initializers.Initializer = None  # all layers give one
    looked_up: bool = False

    def __post_init__(self):
        _living.add(self)
        self._passes = 0
        self._dense_until = NEVER
        self._watching = weakref.WeakKeyDictionary()
        # What the weight was before it lost connections, for methods that begin with all of them.
        self.unpruned = None

    # A forward pass takes a number, and its gradient is dense if that was asked for up to this number. What
    # was asked for a pass whose gradient was never taken, being interrupted, means nothing to later ones.

    def pass_number(self, begins: bool) -> int:
        """The number of the forward pass that reads the weight, a new one if a pass `begins`."""
        self._passes += bool(begins)
        return self._passes

    def ask_for_dense_gradient(self) -> None:
        """Has the gradient of the forward passes so far include positions without a connection.

        An optimizer that masks the gradient itself asks for it (see `SNTASGD.scale_loss`) after the forward
        pass and before the gradient, and says `take_masked_gradient` as soon as it has it.
        """
        self._dense_until = self._passes

    def take_masked_gradient(self) -> None:
        """Has the gradient be zero again where no connection exists."""
        self._dense_until = NEVER

    @contextlib.contextmanager
    def dense_gradient(self) -> Iterator[None]:
        """Within the block the gradients of all passes include positions without a connection."""
        self._dense_until = math.inf
        try:
            yield
        finally:
            self._dense_until = NEVER

    def gradient_is_dense(self, number: int | None = None) -> bool:
        """Whether the gradient of a pass, by default the last one, is not to be masked."""
        return (self._passes if number is None else number) <= self._dense_until

    # Whoever keeps state of each connection has to know when connections are dropped and grown.

    def watch(
        self,
        watcher: keras.optimizers.Optimizer,
        function: Callable[[Any, MaskedWeight, TensorLike, TensorLike], object],
    ) -> None:
        """Has `function(watcher, masked_weight, dropped, grown)` be called when connections change.

        Args:
            watcher: An optimizer, of which only a weak reference is kept.
            function: A function; dropped and grown are boolean arrays or tensors of the weight's shape.
        """
        self._watching[watcher] = function

    def tell(self, dropped: TensorLike, grown: TensorLike) -> None:
        """Tells all watchers which connections were dropped and which were grown."""
        for watcher, function in list(self._watching.items()):
            function(watcher, self, dropped, grown)

    @property
    def name(self) -> str:
        """Path of the variable, for reports and errors; nothing is looked up by it."""
        return self.weight.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.weight.shape)

    @property
    def active(self) -> int:
        """Number of connections that exist."""
        return int(np.count_nonzero(np.asarray(_to_numpy(self.mask))))

    def change_mask(self, mask: TensorLike) -> None:
        """Writes the mask and nothing else: for those who see to the weight and the optimizers.

        Args:
            mask: Boolean array of the weight's shape.
        """
        self.mask.assign(mask)

    is_settled = True

    def unsettle(self) -> None:
        """Says that an optimizer may have state of connections that do not exist."""

    def settle(self) -> None:
        """Says that none has."""

    def project(self) -> None:
        """Sets the weight to zero wherever the mask is False."""
        from keras import ops

        weight = ops.convert_to_tensor(self.weight)
        self.weight.assign(ops.where(ops.convert_to_tensor(self.mask), weight, ops.zeros((), weight.dtype)))

    def gate_densities(self) -> dict[str, float]:
        """Density of each gate as a dict; the whole weight under `"all"` where there are no gates."""
        mask = _to_numpy(self.mask)
        parts = self.split_gates(mask) if self.gates else {"all": mask}
        return {name: float(part.mean()) for name, part in parts.items()}

    def split_gates(self, array: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """The gates of an array of the weight's shape, as a dict from gate name to part of the array."""
        ends = list(np.cumsum(self.gate_sizes)[:-1]) if self.gate_sizes else len(self.gates)
        return dict(zip(self.gates, np.split(array, ends, self.gate_axis), strict=True))


# For an optimizer that has to ask for dense gradients before it has been told its variables.
_living: weakref.WeakSet[MaskedWeight] = weakref.WeakSet()


def living_masked_weights() -> list[MaskedWeight]:
    """All masked weights of this process that are still referenced, of whatever model."""
    return list(_living)


def masked_weights(model: keras.Layer) -> list[MaskedWeight]:
    """The masked weights of a model or layer, in the order of its variables.

    Args:
        model: A built `keras.Model` or layer; nested layers are entered.

    Returns:
        A list of `MaskedWeight`; empty if nothing is masked.

    Example:

    >>> import keras
    >>> from keras_selfish import SparseDense, SparseGRU
    >>> model = keras.Sequential([keras.Input((None, 4)), SparseGRU(8), SparseDense(2)])
    >>> [(weight.shape, weight.active, weight.gates) for weight in masked_weights(model)]
    [((4, 24), 32, ('z', 'r', 'h')), ((8, 24), 63, ('z', 'r', 'h')), ((8, 2), 5, ())]
    """
    found = (getattr(variable, "masked_weight", None) for variable in model.weights)
    return [masked_weight for masked_weight in found if masked_weight is not None]


def overall_sparsity(weights: Iterable[MaskedWeight]) -> float:
    """The fraction of zeros over masked weights together; 0 where there are none."""
    total = sum(math.prod(weight.shape) for weight in weights)
    return 1.0 - sum(weight.active for weight in weights) / total if total else 0.0


def check_sparsity(sparsity: float, name: str = "sparsity") -> None:
    """Raises `ValueError` unless `sparsity` is a number in [0, 1)."""
    checks.number(name, sparsity, "[0, 1)", meaning="is the fraction of zeros and")


def check_seed(seed: int, name: str = "seed") -> int:
    """Returns `seed` as an int; raises `ValueError` unless it is a non-negative integer."""
    found: int = checks.integer(name, seed, at_least=0)
    return found


def check_distribution(distribution: str) -> None:
    """Raises `ValueError` for an unknown distribution of connections."""
    checks.one_of("distribution", distribution, DISTRIBUTIONS)


def check_block_shape(
    block_shape: BlockShape, shape: Shape | None = None, name: str = "the weight"
) -> tuple[int, int]:
    """Returns `block_shape` as a tuple; raises `ValueError` unless its blocks tile a weight of this shape."""
    valid = isinstance(block_shape, (tuple, list)) and len(block_shape) == 2
    if not valid or any(not isinstance(n, (int, np.integer)) or n < 1 for n in block_shape):
        raise ValueError(
            "`block_shape` must be two positive integers (input weights, units). "
            f"Received: block_shape={block_shape!r}"
        )
    rows, columns = block_shape
    block_shape = (int(rows), int(columns))
    if shape is not None and len(shape) == 1 and block_shape != (1, 1):
        raise ValueError(
            f"`block_shape` must be (1, 1) for a vector, not a matrix: {name} has shape {tuple(shape)}. "
            f"Received: block_shape={block_shape}"
        )
    if (
        shape is not None
        and len(shape) > 1
        and any(n % b for n, b in zip(shape[-2:], block_shape, strict=True))
    ):
        wrong = [(n, b) for n, b in zip(shape[-2:], block_shape, strict=True) if n % b]
        raise ValueError(
            f"`block_shape` must divide the matrix: {name} has shape {tuple(shape)}. "
            f"Received: block_shape={block_shape}; take "
            + " and ".join(f"{nearest_multiples(n, b)} in place of {n}" for n, b in wrong)
        )
    return block_shape


def nearest_multiples(size: int, step: int) -> str:
    """The multiples of a step next to a size, for an error message, such as "640 or 656"."""
    below = size // step * step
    return f"{below} or {below + step}" if below else f"{step}"


def active_counts(
    shapes: Iterable[Shape],
    sparsity: float,
    distribution: Distribution = "uniform",
    block_shapes: Sequence[BlockShape] | None = None,
) -> list[int]:
    """How many connections each of several weights gets of a common budget, exactly.

    `"uniform"` gives every weight the same density. `"erdos_renyi"` makes the density of a weight
    proportional to (n_in + n_out) / (n_in * n_out), `"erk"` to the sum of all its axes over their product,
    which differs for convolutions only; small matrices then are denser than large ones. Weights that
    would need a density over 1 are dense and the others share the rest.

    Args:
        shapes: List of shapes, their last two axes (inputs, units). A vector counts as a matrix with one
            weight for each unit, its only axis.
        sparsity: Fraction of zeros over all weights together, in [0, 1).
        distribution: One of `"uniform"` (default), `"erdos_renyi"`, `"erk"`.
        block_shapes: A block shape for each weight; single weights by default.

    Returns:
        A list with the number of active *blocks* of each weight, at least one each. Single weights add up to
        (1 - sparsity) times all weights, rounded, unless one of them had to be raised to one.

    Raises:
        ValueError: for a sparsity, distribution or block shape that is out of range.

    Example:

    >>> active_counts([(4, 4), (8, 8)], sparsity=0.75)
    [4, 16]
    >>> active_counts([(4, 4), (8, 8)], sparsity=0.75, distribution="erdos_renyi")
    [7, 13]

    Reference: Mocanu et al. 2018, arXiv 1707.04780 (Erdős–Rényi); Evci et al. 2020, arXiv 1911.11134 (ERK).
    """
    check_sparsity(sparsity)
    check_distribution(distribution)
    shapes = [tuple(int(n) for n in shape) for shape in shapes]
    block_shapes = block_shapes or [(1, 1)] * len(shapes)
    block_shapes = [check_block_shape(b, s) for b, s in zip(block_shapes, shapes, strict=True)]
    sizes = np.array([math.prod(shape) for shape in shapes], float)
    block_sizes = np.array([math.prod(b) for b in block_shapes], float)
    densities = _densities(shapes, sizes, 1.0 - sparsity, distribution)
    return _round_to_total(densities * sizes, block_sizes, sizes, (1.0 - sparsity) * sizes.sum())


def _densities(shapes, sizes, density, distribution):
    if distribution == "uniform":
        return np.full(len(shapes), density)
    used = [shape if distribution == "erk" else shape[-2:] for shape in shapes]
    scores = np.array([sum(shape) / math.prod(shape) for shape in used])
    full = np.zeros(len(shapes), bool)
    while True:
        left = density * sizes.sum() - sizes[full].sum()
        scale = left / (scores * sizes)[~full].sum() if not full.all() else 0.0
        densities = np.where(full, 1.0, scale * scores)
        if not (densities > 1.0).any():
            return densities
        full |= densities > 1.0


def _round_to_total(weights, block_sizes, sizes, total):
    """Whole blocks for real numbers of weights: rounded down, the rest to the largest remainders."""
    blocks = weights / block_sizes
    # 0.33 * 100 is 33.000000000000004: a remainder of the last bit is none.
    counts = np.maximum(np.floor(blocks + 1e-9), 1.0)
    limits = sizes / block_sizes
    for index in np.argsort(counts - blocks, kind="stable"):
        short = total - (counts * block_sizes).sum()
        if short >= block_sizes[index] / 2 and counts[index] < limits[index]:
            counts[index] += 1
    return [int(count) for count in np.minimum(counts, limits)]


def random_mask(
    shape: Shape, active: int, seed: int | Sequence[int], block_shape: BlockShape = (1, 1)
) -> npt.NDArray[np.bool_]:
    """A mask with exactly `active` blocks of connections, uniformly at random.

    Args:
        shape: Shape of the weight.
        active: Number of blocks that exist.
        seed: An integer or sequence of integers; the same seed gives the same mask.
        block_shape: Shape of a block over the last two axes.

    Returns:
        A boolean NumPy array of the given shape.

    Raises:
        ValueError: if the blocks do not tile the shape, or there are fewer than `active`.

    Example:

    >>> random_mask((4, 2), active=1, seed=0, block_shape=(4, 1)).astype(int)
    array([[0, 1],
           [0, 1],
           [0, 1],
           [0, 1]])
    """
    block_shape = check_block_shape(block_shape, shape)
    grid = block_grid(shape, block_shape)
    blocks = np.zeros(math.prod(grid), bool)
    if not 0 <= active <= blocks.size:
        raise ValueError(
            f"`active` must be in [0, {blocks.size}], the number of blocks. Received: active={active}"
        )
    chosen = np.random.default_rng(seed).choice(blocks.size, int(active), replace=False, shuffle=False)
    blocks[chosen] = True
    return expand_blocks(blocks.reshape(grid), block_shape)


def largest_mask(
    weight: npt.NDArray[Any], active: int, seed: int | Sequence[int], block_shape: BlockShape = (1, 1)
) -> npt.NDArray[np.bool_]:
    """A mask of exactly `active` blocks: those whose weights are largest by their L2 norm.

    Equal norms at the limit are taken at random, so that a weight of one value everywhere gets no pattern.

    Args:
        weight: NumPy array of real numbers.
        active: Number of blocks that exist.
        seed: An integer or sequence of integers, for ties.
        block_shape: Shape of a block over the last two axes.

    Returns:
        A boolean NumPy array of the weight's shape.

    Raises:
        ValueError: if the blocks do not tile the weight, there are fewer than `active`, or a weight is NaN.

    Example:

    >>> largest_mask(np.array([[0.5, -3.0], [2.0, 1.0]]), active=2, seed=0).astype(int)
    array([[0, 1],
           [1, 0]])
    """
    block_shape = check_block_shape(block_shape, weight.shape)
    norms = np.abs(weight.astype(np.float64))
    if np.isnan(norms).any():
        raise ValueError("`weight` must be numbers. Received: NaN")
    if block_shape != (1, 1):
        norms = np.sqrt(np.square(block_view(norms, block_shape)).sum(axis=(-3, -1)))
    if not 0 <= active <= norms.size:
        raise ValueError(
            f"`active` must be in [0, {norms.size}], the number of blocks. Received: active={active}"
        )
    if active == 0:
        return np.zeros(weight.shape, bool)
    limit = np.partition(norms, norms.size - active, axis=None)[norms.size - active]
    chosen = norms > limit
    ties = np.flatnonzero(norms == limit)
    missing = active - np.count_nonzero(chosen)
    ties = np.random.default_rng(seed).choice(ties, missing, replace=False, shuffle=False)
    chosen.reshape(-1)[ties] = True
    return expand_blocks(chosen, block_shape)


def nonzero_mask(weight: npt.NDArray[Any], block_shape: BlockShape = (1, 1)) -> npt.NDArray[np.bool_]:
    """A mask of the blocks that hold a value other than zero.

    Args:
        weight: NumPy array.
        block_shape: Shape of a block over the last two axes.

    Returns:
        A boolean NumPy array of the weight's shape.

    Example:

    >>> nonzero_mask(np.array([[0.5, 0.0], [0.0, 0.0]]), block_shape=(2, 1)).astype(int)
    array([[1, 0],
           [1, 0]])
    """
    block_shape = check_block_shape(block_shape, weight.shape)
    mask = weight != 0
    if block_shape == (1, 1):
        return mask
    blocks: npt.NDArray[np.bool_] = np.any(block_view(mask, block_shape), axis=(-3, -1))
    return expand_blocks(blocks, block_shape)


def check_n_of_m(n_of_m: Pattern, shape: Shape | None = None, name: str = "the weight") -> tuple[int, int]:
    """A pattern as a tuple `(n, m)`; raises `ValueError` if it is none or does not divide the inputs."""
    try:
        n, m = (operator.index(number) for number in n_of_m)
    except (TypeError, ValueError):
        n = m = 0
    if not 1 <= n < m:
        raise ValueError(
            "`n_of_m` must be two integers (n, m) with 1 <= n < m, such as (2, 4). "
            f"Received: n_of_m={n_of_m!r}"
        )
    if shape is not None and (len(shape) < 2 or shape[-2] % m):
        raise ValueError(
            f"`n_of_m` must divide the input weights: {name} has shape {tuple(shape)}. "
            f"Received: n_of_m={(n, m)}; choose sizes that are multiples of {m}"
        )
    return n, m


def n_of_m_mask(shape: Shape, n_of_m: Pattern, seed: int | Sequence[int]) -> npt.NDArray[np.bool_]:
    """A mask with exactly n of each m consecutive input weights of a unit, uniformly at random.

    Args:
        shape: Shape of the weight, at least two axes, the last two (inputs, units).
        n_of_m: `(n, m)`; m must divide the inputs.
        seed: An integer or sequence of integers; the same seed gives the same mask.

    Returns:
        A boolean NumPy array of the given shape.

    Raises:
        ValueError: if the pattern is none, or does not divide the inputs.

    Example:

    >>> n_of_m_mask((8, 3), n_of_m=(2, 4), seed=0).reshape(2, 4, 3).sum(axis=1)
    array([[2, 2, 2],
           [2, 2, 2]])
    """
    check_n_of_m(n_of_m, shape)
    return largest_n_of_m_mask(np.random.default_rng(seed).random(shape, np.float32), n_of_m)


def largest_n_of_m_mask(weight: npt.NDArray[Any], n_of_m: Pattern) -> npt.NDArray[np.bool_]:
    """A mask of the n largest magnitudes of each m consecutive input weights; of equal ones the first.

    Args:
        weight: NumPy array (..., inputs, units) of real numbers.
        n_of_m: `(n, m)`; m must divide the inputs.

    Returns:
        A boolean NumPy array of the weight's shape.

    Raises:
        ValueError: if the pattern is none, or does not divide the inputs.

    Example:

    >>> largest_n_of_m_mask(np.array([[0.5], [-3.0], [2.0], [1.0]]), n_of_m=(2, 4)).ravel().astype(int)
    array([0, 1, 1, 0])
    """
    n, m = check_n_of_m(n_of_m, weight.shape)
    *leading, inputs, units = weight.shape
    groups = np.abs(weight).reshape(*leading, inputs // m, m, units)
    ranks = (-groups).argsort(axis=-2, kind="stable").argsort(axis=-2, kind="stable")
    return (ranks < n).reshape(weight.shape)


def is_n_of_m(mask: npt.NDArray[np.bool_], n_of_m: Pattern) -> bool:
    """Whether a boolean NumPy array (..., inputs, units) has exactly n of each m consecutive inputs.

    Example:

    >>> is_n_of_m(np.array([[1], [0], [0], [1], [1], [0]], bool), n_of_m=(1, 2))
    True
    >>> is_n_of_m(np.array([[1], [0], [0], [1], [1], [0]], bool), n_of_m=(1, 3))
    False
    """
    n, m = n_of_m
    *leading, inputs, units = mask.shape
    return inputs % m == 0 and bool((mask.reshape(*leading, inputs // m, m, units).sum(-2) == n).all())


def block_grid(shape: Shape, block_shape: BlockShape) -> tuple[int, ...]:
    """Shape of the array with one entry per block."""
    if len(shape) == 1:
        return tuple(shape)
    *leading, inputs, units = shape
    return (*leading, inputs // block_shape[0], units // block_shape[1])


def expand_blocks(blocks: npt.NDArray[Any], block_shape: BlockShape) -> npt.NDArray[Any]:
    """Repeats each entry of a (..., inputs, units) array over its block."""
    for axis, size in zip((-2, -1), block_shape, strict=True):
        if size > 1:
            blocks = np.repeat(blocks, size, axis)
    return blocks


def block_view(array: npt.NDArray[Any], block_shape: BlockShape) -> npt.NDArray[Any]:
    """A NumPy view (..., inputs / b0, b0, units / b1, b1) that shows the blocks of an array."""
    grid = block_grid(array.shape, block_shape)
    return array.reshape(*grid[:-1], block_shape[0], grid[-1], block_shape[1])


def block_mask(mask: npt.NDArray[Any], block_shape: BlockShape) -> npt.NDArray[Any]:
    """The array with one entry per block that `expand_blocks` would make a mask of."""
    return mask if block_shape == (1, 1) else block_view(mask, block_shape)[..., 0, :, 0]


def block_sums(array: npt.NDArray[Any], block_shape: BlockShape) -> npt.NDArray[Any]:
    """The sum of each block of an array."""
    return array if block_shape == (1, 1) else block_view(array, block_shape).sum(axis=(-3, -1))


def block_norms(array: npt.NDArray[Any], block_shape: BlockShape) -> npt.NDArray[Any]:
    """The L2 norm of each block of an array."""
    if block_shape == (1, 1):
        return np.abs(array)
    return np.sqrt(np.square(block_view(array, block_shape)).sum(axis=(-3, -1)))


def densify(model: keras.Layer) -> None:
    """Lets every connection of a model's masked weights exist, for methods that begin with all of them.

    Connections that exist keep their weights; the others get back what they had before `sparsify` took
    them, or else start as the weight's initializer says.

    Args:
        model: A built model with masked weights (layers with a sparsity over 0).

    Example:

    >>> import keras
    >>> from keras_selfish import SparseDense
    >>> model = keras.Sequential([keras.Input((4,)), SparseDense(8)])
    >>> densify(model)
    >>> [weight.active for weight in masked_weights(model)]
    [32]
    """
    for weight in masked_weights(model):
        open_mask(weight)


def open_mask(weight: MaskedWeight) -> None:
    """Lets every connection of one masked weight exist, as `densify` does for a model."""
    mask = _to_numpy(weight.mask)
    if not mask.all():
        others = weight.unpruned
        if others is None:
            others = weight.initializer(weight.shape, weight.weight.dtype)
        values = np.where(mask, _to_numpy(weight.weight), _to_numpy(others))
        weight.mask.assign(np.ones_like(mask))
        weight.weight.assign(values)
    weight.unpruned = None


def redraw_masks(
    model: keras.Layer, sparsity: float, distribution: Distribution = "uniform", seed: int = 0
) -> None:
    """Draws the masks of a whole model anew, with one budget for all its masked weights.

    A layer divides its own sparsity among its own matrices; this function divides one budget over the
    model, so that with `"erdos_renyi"` or `"erk"` a small matrix anywhere is denser than a large one. The
    masked weights are initialised again. Call it before training.

    Args:
        model: A built model with masked weights (layers with a sparsity over 0).
        sparsity: Fraction of zeros over all masked weights together, in [0, 1).
        distribution: One of `"uniform"`, `"erdos_renyi"`, `"erk"`.
        seed: Integer seed of the masks.

    Raises:
        ValueError: if the model has no masked weight, or an argument is out of range.

    Example:

    >>> import keras
    >>> from keras_selfish import SparseDense
    >>> model = keras.Sequential([keras.Input((4,)), SparseDense(8), SparseDense(8)])
    >>> redraw_masks(model, sparsity=0.75, distribution="erk")
    >>> [weight.active for weight in masked_weights(model)]
    [10, 14]
    """
    weights = masked_weights(model)
    if not weights:
        raise ValueError(
            "`model` must have masked weights, but has none. Received: "
            f"model={model.name!r}; give its layers a `sparsity` over 0 and build it first"
        )
    check_seed(seed)
    patterns = {weight.n_of_m for weight in weights} - {None}
    if patterns:
        raise ValueError(
            "`model` must have no weight with an n-of-m pattern, which fixes its sparsity. Received: "
            f"n_of_m={patterns.pop()}"
        )
    counts = active_counts(
        [weight.shape for weight in weights],
        sparsity,
        distribution,
        [weight.block_shape for weight in weights],
    )
    for index, (weight, active) in enumerate(zip(weights, counts, strict=True)):
        mask = random_mask(weight.shape, active, [seed, index], weight.block_shape)
        dense = _to_numpy(weight.initializer(weight.shape, weight.weight.dtype))
        weight.mask.assign(mask)
        weight.weight.assign(np.where(mask, dense, 0).astype(dense.dtype))


def _to_numpy(tensor):
    # Importing Keras chooses a backend and loads it; arithmetic on masks needs neither.
    from keras_selfish.variables import to_numpy

    return to_numpy(tensor)
