"""Batches of training images and their augmentation."""

import itertools

import numpy as np
import pytest

from trainers.image_batches import PADDING, augmented, check_augmentation, feed, shuffled_batches

pytestmark = pytest.mark.backends("tensorflow", "jax")


def made(shape, count=60, dtype="uint8"):
    """Images without any 0, so that each crop of one shows what was padded."""
    return np.random.default_rng(0).integers(1, 256, (count, *shape)).astype(dtype)


def crops(image, flip):
    """Every image that an augmentation may make of one, by a loop."""
    height, width, channels = image.shape
    padded = np.zeros((height + 2 * PADDING, width + 2 * PADDING, channels), image.dtype)
    padded[PADDING:-PADDING, PADDING:-PADDING] = image
    places = itertools.product(range(2 * PADDING + 1), repeat=2)
    found = [padded[top : top + height, left : left + width] for top, left in places]
    return found + [crop[:, ::-1] for crop in found] if flip else found


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", [(32, 32, 3), (9, 14, 1), (5, 5, 2)])
@pytest.mark.parametrize("augmentation", ["crop", "crop_flip"])
def test_each_image_is_a_crop_of_itself_or_of_its_mirror_image(augmentation, shape, dtype):
    images = made(shape, dtype=dtype)
    kept = images.copy()
    found = augmented(images, augmentation, np.random.default_rng(1))
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    np.testing.assert_array_equal(images, kept)
    places = []
    for image, one in zip(images, found, strict=True):
        (place,) = [
            i for i, crop in enumerate(crops(image, augmentation == "crop_flip")) if (crop == one).all()
        ]
        places.append(place)
    ways = (2 * PADDING + 1) ** 2
    tops, lefts = np.divmod(np.asarray(places) % ways, 2 * PADDING + 1)
    for moves in (tops, lefts):
        assert (moves.min(), moves.max()) == (0, 2 * PADDING)
    assert np.corrcoef(tops, lefts)[0, 1] < 0.4  # both are drawn
    mirrored = np.count_nonzero(np.asarray(places) >= ways)
    assert 15 <= mirrored <= 45 if augmentation == "crop_flip" else mirrored == 0


def test_none_leaves_the_images():
    images = made((8, 8, 1))
    assert augmented(images, "none", np.random.default_rng(0)) is images


@pytest.mark.parametrize("shape", [(4, 32, 3), (32, 4, 3)])
def test_images_that_a_crop_might_miss(shape):
    check_augmentation("none", shape)
    check_augmentation("crop", (5, 5, 1))
    with pytest.raises(
        ValueError, match=f"sides of at least 5 pixels.*images of {shape[0]} x {shape[1]} pixels"
    ):
        check_augmentation("crop_flip", shape)


# Batches of training.

IMAGES, LABELS = made((8, 8, 1), 50), np.arange(50)


def epochs(count, seed=3, first=0, augmentation="crop_flip"):
    """The batches of some epochs, as a run sees them: a list of lists of (images, labels)."""
    batches = shuffled_batches(IMAGES, LABELS, 20, seed, first, augmentation)
    if not hasattr(feed(batches), "element_spec"):
        found = []
        for _ in range(count):
            found.append([batches[index] for index in range(len(batches))])
            batches.on_epoch_end()
        return found
    dataset = feed(batches)
    return [[(x.numpy(), y.numpy()) for x, y in dataset] for _ in range(count)]


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def by_label(epoch):
    images, labels = (np.concatenate(parts) for parts in zip(*epoch, strict=True))
    return images[np.argsort(labels)]


def test_batches_without_augmentation_are_the_images():
    for epoch in epochs(2, augmentation="none"):
        assert np.array_equal(by_label(epoch), IMAGES)


def test_augmentation_leaves_the_order():
    for one, other in zip(epochs(2), epochs(2, augmentation="none"), strict=True):
        assert equal([labels for _, labels in one], [labels for _, labels in other])
        assert not np.array_equal(by_label(one), by_label(other))


def test_every_epoch_batch_and_seed_has_images_of_its_own():
    first, second = epochs(2)
    (other,) = epochs(1, seed=4)
    for one, another in itertools.combinations([by_label(epoch) for epoch in (first, second, other)], 2):
        alike = [np.array_equal(a, b) for a, b in zip(one, another, strict=True)]
        assert sum(alike) < 10
    # Batches of one epoch are moved each in its way: the first images of all would be alike.
    same = shuffled_batches(np.repeat(IMAGES[:1], 40, axis=0), LABELS[:40], 20, 3, 0, "crop_flip")
    assert not np.array_equal(same[0][0], same[1][0])


def test_a_resumed_run_sees_the_same_images():
    """Whichever order its batches are asked for in."""
    whole = epochs(3)
    for one, other in zip(whole[1:], epochs(2, first=1), strict=True):
        assert all(equal(*pair) for pair in zip(one, other, strict=True))
    batches = shuffled_batches(IMAGES, LABELS, 20, 3, 2, "crop_flip")
    for index in (2, 0, 1, 0):
        assert equal(batches[index], whole[2][index])


def test_a_pass_that_goes_on_and_batches_that_are_filled_up():
    images, labels = np.arange(23).reshape(-1, 1, 1, 1), np.arange(23)
    whole = shuffled_batches(images, labels, 8, seed=3, epoch=2)
    rest = shuffled_batches(images, labels, 8, seed=3, epoch=2, first=1, multiple=4)
    assert (len(whole), len(rest)) == (3, 2)
    np.testing.assert_array_equal(rest[0][1], whole[1][1])
    np.testing.assert_array_equal(rest[1][1], [*whole[2][1], whole[0][1][0]])
