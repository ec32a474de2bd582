"""Dense-to-sparse methods: pruning during training, and once before it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import keras

from keras_selfish import checks, masks
from keras_selfish.rewiring import rules
from keras_selfish.rewiring.budget import target_count
from keras_selfish.rewiring.mask_callback import MaskCallback
from keras_selfish.rewiring.matrix_change import (
    active_blocks,
    choose_dropped,
    choose_kept,
    drop_scores,
    make_change,
)
from keras_selfish.rewiring.model_change import check_equal_blocks, lost_together

if TYPE_CHECKING:
    from keras_selfish.masks import MaskedWeight
    from keras_selfish.rewiring.gradients import GradientData
    from keras_selfish.rewiring.rules import DropRule
    from keras_selfish.rewiring.schedules import PruningSchedule

# Fraction of a trainer's run after which gradual pruning is done.
PRUNED = 0.75


class GMP(MaskCallback):
    """Gradual magnitude pruning: training begins dense, small weights are dropped little by little.

    Whatever the masks of the model are, all its connections exist when training begins: a model that
    `sparsify` has made of a trained one then computes what the trained one does. Before each step that the
    schedule names, the first being 1, the weights of smallest magnitude are taken from every masked weight
    until its sparsity is the schedule's; they are not grown again.

    Args:
        schedule: When and how far: `schedules.PolynomialDecay`, or a schedule of TensorFlow Model
            Optimization as it is (`tfmot.sparsity.keras.PolynomialDecay`, `ConstantSparsity`): an object with
            `begin_step`, `end_step` (-1 for no end) and `frequency` that returns `(whether, sparsity)` when
            called with a step.
        drop: Which connections are dropped: `"magnitude"` (default), `"sensitivity"`, or a drop rule.
        gradient_data: See `Rewiring`.
        seed: Integer seed.

    Raises:
        ValueError: if the schedule is no such object; when training begins, for what `Rewiring` refuses too,
            a model that is not built, or weights with an n-of-m pattern.

    Reference: Zhu and Gupta 2017, "To prune, or not to prune", arXiv 1710.01878, section 3.

    Example:

    >>> import keras, numpy as np
    >>> from keras_selfish.layers import SparseDense
    >>> from keras_selfish.rewiring.schedules import PolynomialDecay
    >>> model = keras.Sequential([keras.Input((8,)), SparseDense(4, sparsity=0.75)])
    >>> model.compile("sgd", "mse")
    >>> schedule = PolynomialDecay(0.0, 0.75, begin_step=0, end_step=4, frequency=2)
    >>> history = model.fit(np.ones((8, 8)), np.ones((8, 4)), batch_size=2, epochs=2, verbose=0,
    ...                     callbacks=[GMP(schedule)])
    >>> history.history["sparsity"]
    [0.75, 0.75]
    """

    starts_dense = needs_built_model = True

    def __init__(
        self,
        schedule: PruningSchedule,
        drop: DropRule = "magnitude",
        gradient_data: GradientData | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(gradient_data, seed)
        missing = [name for name in ("begin_step", "end_step", "frequency") if not hasattr(schedule, name)]
        if missing or not callable(schedule):
            raise ValueError(
                "`schedule` must be a pruning schedule with begin_step, end_step and frequency, such as "
                f"PolynomialDecay. Received: schedule={schedule!r}"
            )
        self.schedule = schedule
        self.drop = rules.resolve("drop", drop, rules.DROP_RULES)
        self._gradient_batches = rules.batches_needed(self.drop)
        self.check_gradient_data(self._gradient_batches)

    @classmethod
    def for_run(
        cls, *, sparsity: float, total_steps: int, data: GradientData, seed: int, **options: Any
    ) -> Self:
        return cls(_gradual(sparsity, int(PRUNED * total_steps)), seed=seed, **options)

    # TensorFlow Model Optimization counts the first step as 1: masks change before the step that is named,
    # and a schedule may end with the last one.

    def is_due(self, last: int, step: int) -> bool:
        return self._updates_until(step + 1) > self._updates_until(last + 1)

    def _updates_until(self, step):
        """Number of updates that the schedule has made by a step; the end, if there is one, always counts."""
        begin, end = self.schedule.begin_step, self.schedule.end_step
        if step < begin:
            return 0
        ended = end != -1 and step >= end
        return 1 + ((end if ended else step) - begin) // self.schedule.frequency + ended

    def update(self, step: int) -> None:
        end = self.schedule.end_step
        _, sparsity = self.schedule(step + 1 if end == -1 else min(step + 1, end))
        self.prune(float(sparsity), step)

    def prune(self, sparsity: float, step: int) -> None:
        """Drops connections of every masked weight until it has this sparsity.

        Args:
            sparsity: Fraction of zeros, in [0, 1). A weight that is sparser already stays as it is.
            step: Training step, which decides on the batches of gradients if the rule needs any.
        """
        masks.check_sparsity(sparsity)

        def choose(matrix):
            active = active_blocks(matrix)
            count = matrix.arrays.count(active) - target_count(sparsity, math.prod(active.shape))
            if count <= 0:
                return None
            kept = choose_kept(matrix, count, self.drop)
            return make_change(matrix, kept, matrix.arrays.nothing(kept))

        self.change(
            step,
            lambda matrices, each: each(choose, matrices),
            self._gradient_batches,
            rules.read_tensors(self.drop),
        )

    def check_weight(self, masked_weight: MaskedWeight) -> None:
        if masked_weight.n_of_m:
            raise ValueError(
                f"`n_of_m` fixes the number of connections of {masked_weight.name!r}, which gradual pruning "
                f"changes. Received: n_of_m={masked_weight.n_of_m}; use SNIP or a rewiring method"
            )


def _gradual(sparsity, end_step):
    """From dense to this sparsity along a cubic."""
    if keras.backend.backend() == "tensorflow":
        from tensorflow_model_optimization.sparsity.keras import PolynomialDecay
    else:  # the same, without TensorFlow
        from keras_selfish.rewiring.schedules import PolynomialDecay
    return PolynomialDecay(0.0, sparsity, begin_step=0, end_step=end_step, frequency=min(100, end_step))


class SNIP(MaskCallback):
    """Single-shot pruning, before the first step, of the weights that change the loss least.

    All masks are opened and the gradient of one batch is taken, without dropout. Of all masked weights
    together as many connections stay as the masks had, those with the largest |weight * gradient|; after that
    no mask changes. A weight keeps at least one. Weights with an n-of-m pattern keep their n largest in each
    group of m.

    Embeddings keep the connections that they have, unless a decoder is tied to them: tokens that are in no
    batch have no gradient, and those that are rare hardly any, over however many batches it is taken, so that
    nearly all of them would lose all their connections. No network of the paper has an embedding.

    Args:
        gradient_data: The training data: one batch, a `PyDataset`, a `tf.data.Dataset`, or a function from
            the step to a batch. A larger batch gives a better estimate.
        drop: The rule that scores; `"sensitivity"` by default.
        seed: Integer seed.
        gradient_batches: Number of batches of which the mean gradient is taken. Default: as many as the rule
            needs, for `"sensitivity"` one, as published; de Jorge et al. 2020 take several.
        prune_embeddings: Whether embeddings are pruned like all other weights. Default False.

    Raises:
        ValueError: when training begins, for what `Rewiring` refuses too, a model that is not built, or one
            in which embeddings alone are masked.

    Reference: Lee et al. 2019, "SNIP: single-shot network pruning based on connection sensitivity",
    arXiv 1810.02340, algorithm 1; de Jorge et al. 2020, arXiv 2006.09081 (several batches).
    """

    needs_built_model = True
    gradients_in_training = False  # as in the published code

    def __init__(
        self,
        gradient_data: GradientData | None = None,
        drop: DropRule = "sensitivity",
        seed: int = 0,
        gradient_batches: int | None = None,
        prune_embeddings: bool = False,
    ) -> None:
        super().__init__(gradient_data, seed)
        checks.integer("gradient_batches", gradient_batches, at_least=1, others=(None,))
        self.drop = rules.resolve("drop", drop, rules.DROP_RULES)
        self.prune_embeddings = prune_embeddings
        self._gradient_batches = rules.batches_needed(self.drop)
        if self._gradient_batches and gradient_batches is not None:
            self._gradient_batches = gradient_batches
        self.check_gradient_data(self._gradient_batches)

    def is_due(self, last: int, step: int) -> bool:
        return step == 0 and last < 0

    def update(self, step: int) -> None:
        weights = masks.masked_weights(self.model)
        count = sum(w.active // math.prod(w.block_shape) for w in weights if self._ranks(w))
        for weight in weights:
            if self._prunes(weight):
                masks.open_mask(weight)
            weight.unpruned = None
        self.align()

        def choose(matrices, each):
            ranked = [matrix for matrix in matrices if self._ranks(matrix.masked_weight)]
            check_equal_blocks(ranked)
            total = sum(math.prod(active_blocks(matrix).shape) for matrix in ranked)
            lost = iter(lost_together(ranked, each, total - count, self.drop))
            counts = [next(lost) if self._ranks(matrix.masked_weight) else None for matrix in matrices]
            return each(self._pruned, matrices, counts)

        self.change(step, choose, self._gradient_batches, rules.read_tensors(self.drop))

    def _prunes(self, masked_weight):
        """Whether a weight is pruned at all."""
        return masked_weight.weight.trainable and (self.prune_embeddings or not masked_weight.looked_up)

    def _ranks(self, masked_weight):
        """Whether the connections of a weight compete with those of others."""
        return self._prunes(masked_weight) and not masked_weight.n_of_m

    def _check_model(self):
        super()._check_model()
        if not any(map(self._prunes, masks.masked_weights(self.model))):
            raise ValueError(
                "`prune_embeddings` must be True where no other trainable weights are masked. "
                f"Received: prune_embeddings=False for the model {self.model.name!r}"
            )

    def _pruned(self, matrix, count):
        if not self._prunes(matrix.masked_weight):
            return None
        arrays = matrix.arrays
        nothing = arrays.nothing(active_blocks(matrix))
        if count is not None:
            return make_change(matrix, ~choose_dropped(matrix, count, self.drop), nothing)
        scores = arrays.each_smallest(drop_scores(matrix, self.drop))
        kept = arrays.largest_of_groups(scores, ~nothing, matrix.masked_weight.n_of_m, kept=nothing)
        return make_change(matrix, kept, nothing)
