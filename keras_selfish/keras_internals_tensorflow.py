"""What this package uses of TensorFlow that TensorFlow keeps private. See `keras_internals.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = ["LOOKED_AT", "call_once_for_all_replicas"]

# The versions of TensorFlow whose source was read, and on which the tests passed.
LOOKED_AT = ("2.19", "2.20", "2.21")


def call_once_for_all_replicas(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `function(strategy, *arguments)` where variables of all replicas can be updated.

    `ReplicaContext.merge_call` is public. Under a `MirroredStrategy` of GPUs it raises in a function that XLA
    compiles, where each replica calls the function instead; Keras's optimizers use this one, too.
    """
    strategy = tf.distribute.get_strategy()
    return tf.__internal__.distribute.interim.maybe_merge_call(function, strategy, *arguments)
