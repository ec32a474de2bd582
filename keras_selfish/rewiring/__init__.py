"""Rewiring: connections that are dropped and grown while a model trains."""

from typing import TYPE_CHECKING

from keras_selfish._lazy import lazy_attributes
from keras_selfish.rewiring.registry import callback_modules

if TYPE_CHECKING:
    # What editors and type checkers read of the names that load lazily; `as` exports them.
    from keras_selfish.rewiring.mask_callback import MaskCallback as MaskCallback
    from keras_selfish.rewiring.methods import DSR as DSR
    from keras_selfish.rewiring.methods import GSE as GSE
    from keras_selfish.rewiring.methods import SET as SET
    from keras_selfish.rewiring.methods import SNFS as SNFS
    from keras_selfish.rewiring.methods import RigL as RigL
    from keras_selfish.rewiring.methods import SelfishRewiring as SelfishRewiring
    from keras_selfish.rewiring.methods import Static as Static
    from keras_selfish.rewiring.pruning import GMP as GMP
    from keras_selfish.rewiring.pruning import SNIP as SNIP
    from keras_selfish.rewiring.registry import METHODS as METHODS
    from keras_selfish.rewiring.registry import register as register
    from keras_selfish.rewiring.rewiring import Rewiring as Rewiring
    from keras_selfish.rewiring.schedules import PolynomialDecay as PolynomialDecay

_SOURCES = {
    "METHODS": "registry",
    "MaskCallback": "mask_callback",
    "PolynomialDecay": "schedules",
    "Rewiring": "rewiring",
    "register": "registry",
    **{name: module.removeprefix(f"{__name__}.") for name, module in callback_modules().items()},
}

__all__ = sorted(_SOURCES)

if not TYPE_CHECKING:  # to a type checker any name would be one of them
    __getattr__ = lazy_attributes(__name__, _SOURCES)
