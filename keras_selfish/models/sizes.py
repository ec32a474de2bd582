"""Dense models as small as sparse ones."""

from __future__ import annotations

import dataclasses

from keras_selfish.analysis import report
from keras_selfish.models.architecture import Architecture
from keras_selfish.models.language_models import LanguageModel


def small_dense(architecture: Architecture) -> Architecture:
    """The settings of a dense language model with as many parameters as a sparse one.

    All its layers are narrowed by the same factor.

    Args:
        architecture: The sparse `Architecture`.

    Returns:
        An `Architecture` with sparsity 0 and fewer units, whose model has at most as many parameters as the
        sparse one has connections and biases, and with one unit more in its first layer would have more.

    Example:

    >>> small_dense(Architecture(1000, units=64, layers=1, sparsity=0.75)).units
    18
    """
    limit = _parameters(architecture).sparse
    # Chunks of ordered neurons must stay whole.
    step = (architecture.cell_options or {}).get("chunk_size", 1)
    low, high = 1, architecture.layer_units[0] // step
    while high - low > 1:
        middle = (low + high) // 2
        if _parameters(_narrowed(architecture, middle, step)).dense > limit:
            high = middle
        else:
            low = middle
    return _narrowed(architecture, low, step)


def _parameters(architecture):
    return report(LanguageModel(**architecture.get_config())).parameters


def _narrowed(architecture, steps, step):
    """A dense architecture whose first layer has `steps * step` units, and all else in proportion."""
    factor = steps / architecture.layer_units[0]

    def narrow(number):
        return step * max(1, round(factor * number))

    units, features = architecture.units, architecture.embedding_units
    return dataclasses.replace(
        architecture,
        units=narrow(units) if isinstance(units, int) else list(map(narrow, units)),
        embedding_units=None if features is None else narrow(features),
        sparsity=0.0,
    )
