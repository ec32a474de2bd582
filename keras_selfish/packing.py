"""Arrays of which most entries are one value, stored as bits and as the entries that are others.

A *store* maps keys to arrays: a group of an HDF5 file, an archive of NumPy, a dict. A mask is stored as its
bits. Of a masked weight the values where its mask is True are stored, in the order of the array; of any other
array the values that differ from its most frequent one. What is stored so has its shape beside it, under the
key with `_shape` after it; without one, an array is stored as it is, as all were in earlier versions.
"""

import math

import numpy as np

SHAPE, BITS = "_shape", "_bits"

# Below, the keys and headers of a file take more than the zeros.
SMALLEST_PACKED = 1024

SAMPLED_ENTRIES = 1024


def pack_masked(store, arrays, pairs):
    """Stores arrays, the masked weights among them without what is outside of their masks.

    Args:
        store: Where to store.
        arrays: Dict of NumPy arrays.
        pairs: The keys of each masked weight and its mask, a list of pairs. A weight that is not zero, bit
            for bit, where its mask is False is stored as it is.
    """
    arrays = dict(arrays)
    for weight_key, mask_key in pairs:
        mask, weight = arrays.pop(mask_key), _as_integers(arrays[weight_key])
        inside = weight.take(_indices(mask))
        if np.count_nonzero(inside) == np.count_nonzero(weight):
            arrays[weight_key] = inside.view(arrays[weight_key].dtype)
        _store_bits(store, mask_key, mask_key + SHAPE, mask)
    for key, array in arrays.items():
        store[key] = array


def unpack_masked(store, pairs, owner):
    """What `pack_masked` has stored, or an earlier version as whole arrays.

    Args:
        store: Where they are stored.
        pairs: As in `pack_masked`, each with the shape of the weight as its third item.
        owner: Name of the layer that the arrays are of, for errors.

    Returns:
        A dict of all arrays.

    Raises:
        ValueError: if masks and values do not fit each other or the shapes.
    """
    arrays = _all_of(store)
    for weight_key, mask_key, shape in pairs:
        absent = [key for key in (weight_key, mask_key) if key not in arrays]
        if absent:
            raise ValueError(
                f"The stored weights of {owner!r} must hold a mask for each sparse weight. Received: nothing "
                f"under {', '.join(absent)}; load them into a layer with sparsity=0"
            )
        weight, mask = arrays[weight_key], arrays[mask_key]
        if mask_key + SHAPE in arrays:
            mask = _bits_of(mask, arrays.pop(mask_key + SHAPE), f"{owner}/{mask_key}")
        if mask.dtype != bool or mask.shape != tuple(shape):
            raise ValueError(
                f"The stored mask {mask_key!r} of {owner!r} must be booleans of the shape of its weight, "
                f"{tuple(shape)}. Received: {mask.dtype} of shape {mask.shape}; load it into a layer of the "
                "size that it was saved from"
            )
        if weight.shape != mask.shape:
            weight = _spread(weight, mask, np.zeros(1, weight.dtype), f"{owner}/{weight_key}")
        arrays[weight_key], arrays[mask_key] = weight, mask
    return arrays


def pack(store, key, array):
    """Stores an array without its most frequent value, where that is smaller; a mask as its bits.

    Args:
        store: Where to store.
        key: Under which key.
        array: NumPy array of any dtype.

    Example:

    >>> store = {}
    >>> pack(store, "momentum", np.eye(100, dtype="float32"))
    >>> {key: array.shape for key, array in store.items()}
    {'momentum_bits': (1250,), 'momentum_shape': (2,), 'momentum': (101,)}
    >>> bool((unpacked(store)["momentum"] == np.eye(100)).all())
    True
    """
    if array.size < SMALLEST_PACKED or array.itemsize > 8:
        store[key] = array
    elif array.dtype == bool:
        _store_bits(store, key, key + SHAPE, array)
    else:
        entries = _as_integers(array)
        common = _most_frequent(entries)
        different = entries != common
        places = _indices(different)
        is_smaller = places.size * entries.itemsize + entries.size // 8 < array.nbytes
        if is_smaller:
            _store_bits(store, key + BITS, key + SHAPE, different.reshape(array.shape))
            array = np.append(common, entries.take(places)).view(array.dtype)
        store[key] = array


def unpacked(store):
    """All arrays that `pack` has stored, or an earlier version as they were, as a dict.

    Args:
        store: Where they are stored.

    Raises:
        ValueError: if the parts of an array do not fit each other.
    """
    arrays = _all_of(store)
    for key in [key.removesuffix(SHAPE) for key in arrays if key.endswith(SHAPE)]:
        shape, bits = arrays.pop(key + SHAPE), arrays.pop(key + BITS, None)
        if key not in arrays:
            raise ValueError(
                f"A stored array must have values. Received: a shape without any for {key!r}; the file is "
                "damaged"
            )
        if bits is None:
            arrays[key] = _bits_of(arrays[key], shape, key)
        else:
            values = arrays[key]
            arrays[key] = _spread(values[1:], _bits_of(bits, shape, key), values[:1], key)
    return arrays


def _all_of(store):
    return {key: store[key] for key in store.keys()}  # noqa: SIM118 (Keras's stores cannot be iterated)


def _store_bits(store, key, shape_key, mask):
    store[key] = np.packbits(mask.reshape(-1))
    store[shape_key] = np.array(mask.shape, "int64")


def _bits_of(bits, shape, name):
    """The boolean array that was stored as bits."""
    shape = tuple(int(size) for size in shape)
    count = math.prod(shape)
    if bits.dtype != np.uint8 or bits.shape != ((count + 7) // 8,):
        raise ValueError(
            f"The stored bits of {name!r} must be {(count + 7) // 8} bytes for an array of shape {shape}. "
            f"Received: {bits.dtype} of shape {bits.shape}; the file is damaged"
        )
    return np.unpackbits(bits, count=count).view(bool).reshape(shape)


def _spread(values, places, elsewhere, name):
    """The array that has the values where `places` is True, and one value everywhere else."""
    indices = _indices(places)
    if values.shape != indices.shape or elsewhere.shape != (1,):
        raise ValueError(
            f"The stored values of {name!r} must be as many as its bits tell, {indices.size}. "
            f"Received: values of shape {values.shape}; the file is damaged"
        )
    (elsewhere,) = _as_integers(elsewhere)
    whole = np.zeros(places.size, elsewhere.dtype)  # of pages that are zero already
    if elsewhere:
        whole.fill(elsewhere)
    whole[indices] = _as_integers(values)
    return whole.view(values.dtype).reshape(places.shape)


def _indices(mask):
    """Where a mask is True. NumPy takes several times as long with the mask itself."""
    flat, count = mask.reshape(-1), np.count_nonzero(mask)
    if flat.size // 50 < count <= flat.size // 10:
        # Up to a tenth, NumPy 2.4 looks for one after another, which takes longer if they are not so few.
        flat = np.append(flat, np.ones(flat.size // 8 + 1, bool))
    return np.flatnonzero(flat)[:count]


def _as_integers(array):
    """The entries as what their bits are, so that -0.0 is not 0.0 and NaN is itself."""
    entries = np.ascontiguousarray(array).reshape(-1)
    return entries.view(f"u{entries.itemsize}")


def _most_frequent(entries):
    """The most frequent value of a sample of the entries, which may be none of many."""
    sample = entries[:: max(1, entries.size // SAMPLED_ENTRIES)]
    values, counts = np.unique(sample, return_counts=True)
    return values[counts.argmax()]
