"""Batches of training images: their order, their augmentation, and their way to the backend."""

import numpy as np

# Pixels of black that a crop may show at a side.
PADDING = 4
AUGMENTATIONS = ("none", "crop", "crop_flip")


def check_augmentation(augmentation, shape):
    """Refuses to crop images of which nothing might be left.

    Args:
        augmentation: One of `AUGMENTATIONS`.
        shape: (height, width, channels) of an image.

    Raises:
        ValueError: for a side that is no longer than the padding.
    """
    if augmentation != "none" and min(shape[:2]) <= PADDING:
        raise ValueError(
            f"--augmentation={augmentation} needs images with sides of at least {PADDING + 1} pixels: a crop "
            f"moves them by up to {PADDING}. Received: images of {shape[0]} x {shape[1]} pixels; use "
            "--augmentation=none"
        )


def augmented(images, augmentation, generator):
    """A batch in which each image is another crop of itself, and may be mirrored.

    Args:
        images: Array (images, height, width, channels); it is left as it is.
        augmentation: "none" returns the images; "crop" moves each by up to `PADDING` pixels in both
            directions, where what comes into view is 0; "crop_flip" mirrors half of them besides, left to
            right. Both draw for each image on its own.
        generator: NumPy's `Generator` to draw from.

    Returns:
        An array of the same shape and type.
    """
    if augmentation == "none":
        return images
    count, height, width, channels = images.shape
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    # (images, tops, lefts, height, width, channels), a view; all channels are in the one window.
    crops = np.lib.stride_tricks.sliding_window_view(padded, (height, width, channels), (1, 2, 3))[:, :, :, 0]
    top, left = generator.integers(0, 2 * PADDING + 1, (2, count))
    found = crops[np.arange(count), top, left]
    if augmentation == "crop_flip":
        mirrored = generator.random(count) < 0.5
        found[mirrored] = found[mirrored, :, ::-1]
    return found


def shuffled_batches(images, labels, batch_size, seed, epoch, augmentation="none", first=0, multiple=1):
    """Batches in an order of its own for each epoch, the same for a run that is resumed there.

    So are the images that `augmented` makes of them: they follow from the seed, the epoch and the batch.

    Args:
        images: Array (images, height, width, channels).
        labels: Integer array (images,).
        batch_size: Images of a batch.
        seed: Integer seed.
        epoch: Number of epochs before the first one.
        augmentation: One of `AUGMENTATIONS`.
        first: Number of batches to leave out at the beginning of each epoch.
        multiple: What the number of images of a batch is to be a multiple of: the last one is filled up with
            the first images of the epoch.
    """
    import keras

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return -(-len(images) // batch_size) - first

        def __getitem__(self, index):
            place = first + index
            chosen = self.order[place * batch_size : (place + 1) * batch_size]
            chosen = np.append(chosen, self.order[: -len(chosen) % multiple])
            # NumPy takes the zeros that a seed ends with for none, and the order is drawn from the first two.
            generator = np.random.default_rng([seed, self.epoch, 1 + place])
            return augmented(images[chosen], augmentation, generator), labels[chosen]

        def begin(self, epoch):
            self.epoch = epoch
            self.order = np.random.default_rng([seed, epoch]).permutation(len(images))

        def on_epoch_end(self):
            self.begin(self.epoch + 1)

    batches = Batches()
    batches.begin(epoch)
    return batches


def feed(batches):
    """Batches in the form that suits the backend."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    from keras_selfish.data.prefetching_tensorflow import prefetched

    def epoch():
        yield from (batches[index] for index in range(len(batches)))
        batches.on_epoch_end()

    signature = tuple(tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in batches[0])
    dataset = tf.data.Dataset.from_generator(epoch, output_signature=signature)
    return prefetched(dataset.apply(tf.data.experimental.assert_cardinality(len(batches))))
