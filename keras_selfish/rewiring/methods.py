"""The published methods: each a choice of rules, schedule and frequency.

Their defaults are the published ones; every argument of `Rewiring` can be given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Unpack

from keras_selfish.rewiring.rewiring import Rewiring

if TYPE_CHECKING:
    from keras_selfish.rewiring.options import RewiringOptions


class SelfishRewiring(Rewiring):
    """Rewiring as in selfish sparse RNN training: small weights are dropped, random ones grown.

    The gates of a recurrent kernel compete for the connections of their layer: weights are ranked over the
    whole concatenated kernel, and grow anywhere in it. The rewired fraction falls by a cosine over the
    training steps.

    Args:
        pruning_rate: Initial fraction of the connections that are rewired; 0.8 (default) for the published
            LSTM, 0.5 for the other published models.
        **kwargs: See `Rewiring`.

    Reference: Liu et al. 2021, "Selfish Sparse RNN Training", arXiv 2101.09048, section 3.
    """

    def __init__(self, pruning_rate: float = 0.8, **kwargs: Unpack[RewiringOptions]) -> None:
        super().__init__(pruning_rate, **kwargs)


class Static(Rewiring):
    """No rewiring: the connections that were drawn stay. It reports densities as the other methods do.

    Args:
        pruning_rate: Taken so that all methods are made alike, and not used.
        **kwargs: See `Rewiring`.
    """

    def __init__(self, pruning_rate: float = 0.0, **kwargs: Unpack[RewiringOptions]) -> None:
        super().__init__(0.0, **(kwargs | {"schedule": "constant"}))


class SET(Rewiring):
    """Sparse evolutionary training: small weights of each sign are dropped, random ones grown.

    Args:
        pruning_rate: Fraction of the connections that are rewired at the end of each epoch.
        **kwargs: See `Rewiring`; `schedule` is `"constant"` here by default.

    Reference: Mocanu et al. 2018, arXiv 1707.04780, algorithm 1.
    """

    def __init__(self, pruning_rate: float = 0.3, **kwargs: Unpack[RewiringOptions]) -> None:
        defaults: RewiringOptions = {
            "schedule": "constant",
            "drop": "magnitude_by_sign",
            "reset_regrown": True,
        }
        super().__init__(pruning_rate, **(defaults | kwargs))


class DSR(Rewiring):
    """Dynamic sparse reparameterization: one threshold for all weights, growth by the connections left.

    The published threshold adapts by doubling and halving until about the wanted number of connections is
    dropped; here the threshold at which exactly that number is dropped is found at each rewiring.

    Args:
        pruning_rate: Fraction of all connections that are rewired.
        **kwargs: See `Rewiring`.

    Reference: Mostafa and Wang 2019, arXiv 1902.05967, algorithm 1.
    """

    def __init__(self, pruning_rate: float = 0.3, **kwargs: Unpack[RewiringOptions]) -> None:
        defaults: RewiringOptions = {
            "schedule": "constant",
            "drop_scope": "model",
            "redistribution": "nonzeros",
        }
        super().__init__(pruning_rate, **(defaults | kwargs))


class SNFS(Rewiring):
    """Sparse networks from scratch: growth and its division among the weights follow the momentum.

    A weight's share of what is grown is the *mean* magnitude of its connections' momentum, whatever its size
    (see `rules.mean_momentum`). In a language model that share is large for recurrent kernels, which are
    small and fill up, and small for an embedding, most of whose rows are in few batches. With
    `redistribution="none"` every weight keeps its number of connections, as in the code of Evci et al. 2020,
    which compares RigL with this method.

    Args:
        pruning_rate: Initial fraction of the connections that are rewired.
        **kwargs: See `Rewiring`; `gradient_data` is needed.

    Reference: Dettmers and Zettlemoyer 2019, arXiv 1907.04840, section 3.
    """

    def __init__(self, pruning_rate: float = 0.5, **kwargs: Unpack[RewiringOptions]) -> None:
        defaults: RewiringOptions = {"grow": "momentum", "redistribution": "momentum"}
        super().__init__(pruning_rate, **(defaults | kwargs))


class RigL(Rewiring):
    """The rigged lottery: small weights are dropped, those with the largest gradients grown.

    Args:
        pruning_rate: Initial fraction of the connections that are rewired.
        **kwargs: See `Rewiring`; `gradient_data` is needed. Rewires each 100 steps during three quarters of
            training by default.

    Reference: Evci et al. 2020, arXiv 1911.11134, algorithm 1.
    """

    rounding = staticmethod(math.floor)

    def __init__(self, pruning_rate: float = 0.3, **kwargs: Unpack[RewiringOptions]) -> None:
        defaults: RewiringOptions = {
            "grow": "gradient",
            "frequency": 100,
            "stop_fraction": 0.75,
            "end_rate": 0.0,
        }
        super().__init__(pruning_rate, **(defaults | kwargs))


class GSE(Rewiring):
    """Guided stochastic exploration: the largest gradients of a random subset of positions are grown.

    Args:
        pruning_rate: Initial fraction of the connections that are rewired.
        **kwargs: See `Rewiring`; `gradient_data` is needed.

    Reference: Heddes et al. 2024, arXiv 2401.06898, algorithm 1.
    """

    def __init__(self, pruning_rate: float = 0.3, **kwargs: Unpack[RewiringOptions]) -> None:
        defaults: RewiringOptions = {"grow": "guided", "frequency": 100}
        super().__init__(pruning_rate, **(defaults | kwargs))
