"""How a `tf.data.Dataset` is read ahead."""

import tensorflow as tf

__all__ = ["prefetched"]


def prefetched(dataset):
    """Returns a `tf.data.Dataset` that makes two batches ahead and leaves nothing to be tuned at run time.

    `prefetch(tf.data.AUTOTUNE)` would start a thread that sleeps twice as long each time, up to a minute.
    TensorFlow 2.21 waits for that thread at the end of an epoch, and where cores are few its call is often
    missed: then an epoch of 2.6 s takes 5.1 s, and longer ones up to a minute more.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    # Each of several workers takes its rows of every batch, not some of the files.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.prefetch(2).with_options(options)
