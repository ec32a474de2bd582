"""Dense models as small as sparse ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from keras_selfish.analysis import report
from keras_selfish.models.language_models import LanguageModel

if TYPE_CHECKING:
    from keras_selfish.models.options import LanguageModelOptions


def small_dense(vocabulary_size: int, **settings: Unpack[LanguageModelOptions]) -> dict[str, Any]:
    """The settings of a dense language model with as many parameters as a sparse one.

    All its layers are narrowed by the same factor.

    Args:
        vocabulary_size: Number of tokens in the vocabulary.
        **settings: Arguments of the sparse `LanguageModel`.

    Returns:
        A dict: `settings` with sparsity 0 and fewer units, whose model has at most as many parameters as the
        sparse one has connections and biases, and with one unit more in its first layer would have more.

    Raises:
        ValueError: for settings that `LanguageModel` refuses.

    Example:

    >>> small_dense(1000, units=64, layers=1, sparsity=0.75)["units"]
    18
    """
    limit = report(LanguageModel(vocabulary_size, **settings)).parameters.sparse
    units = settings["units"]
    # Chunks of ordered neurons must stay whole.
    step = (settings.get("cell_options") or {}).get("chunk_size", 1)
    low, high = 1, (units if isinstance(units, int) else units[0]) // step
    while high - low > 1:
        middle = (low + high) // 2
        narrowed = _narrowed(settings, middle, step)
        if report(LanguageModel(vocabulary_size, **narrowed)).parameters.dense > limit:
            high = middle
        else:
            low = middle
    return _narrowed(settings, low, step)


def _narrowed(settings, steps, step):
    """Settings whose first layer has `steps * step` units, and all else in proportion."""
    units = settings["units"]
    factor = steps / (units if isinstance(units, int) else units[0])

    def narrow(number):
        return step * max(1, round(factor * number))

    narrowed = {"units": steps * step if isinstance(units, int) else list(map(narrow, units))}
    if settings.get("embedding_units"):
        narrowed["embedding_units"] = narrow(settings["embedding_units"])
    return {**settings, **narrowed, "sparsity": 0.0}
