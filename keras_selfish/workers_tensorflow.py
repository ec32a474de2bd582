"""What the `fit` of Keras 3.15 lacks for several workers.

`tests/models/test_workers.py` fails when it lacks nothing any more.
"""

import tensorflow as tf


def prepare_for_fit():
    """Has Keras's `fit` work with the current strategy, if that is of several workers.

    Models and masked layers call it when they are made, which is in the strategy's scope.
    """
    strategy = tf.distribute.get_strategy()
    if type(strategy) is tf.distribute.MultiWorkerMirroredStrategy:
        # It was made by the user, of a class that Keras looks for.
        strategy.__class__ = MultiWorkerStrategy


class MultiWorkerStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """`MultiWorkerMirroredStrategy` that also reduces what Keras 3.15 gives it by mistake."""

    def reduce(self, reduce_op, value, axis):
        """As in `tf.distribute.Strategy`; takes a nested `value`, and scalars along axis 0, too.

        Keras reduces the first batch as a whole to learn its shapes, and the logs of a step, which are
        scalars, along the axis of the batch.
        """

        def reduced(part):
            locals_ = () if axis is None else self.experimental_local_results(part)
            along = None if any(one.shape.rank == 0 for one in locals_) else axis
            return super(MultiWorkerStrategy, self).reduce(reduce_op, part, along)

        return tf.nest.map_structure(reduced, value)
