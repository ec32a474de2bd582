"""Reading small images in every published form, and refusing what is damaged."""

import codecs
import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from keras_selfish.data import images
from keras_selfish.data.images import load_images

GENERATOR = np.random.default_rng(0)
GREY = [GENERATOR.integers(0, 256, (n, 28, 28)).astype("uint8") for n in (6, 4)]
COLOUR = [GENERATOR.integers(0, 256, (n, 32, 32, 3)).astype("uint8") for n in (10, 3)]
LABELS = [GENERATOR.integers(0, 10, n).astype("uint8") for n in (6, 4)]


def write_npz(path, x, y, **change):
    arrays = {"x_train": x[0], "y_train": y[0], "x_test": x[1], "y_test": y[1], **change}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def write_idx(folder, compress=False):
    for name, array in zip(images._IDX, (GREY[0], LABELS[0], GREY[1], LABELS[1]), strict=True):
        content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
        path = folder / (f"{name}.gz" if compress else name)
        path.write_bytes(gzip.compress(content) if compress else content)


def batch(pixels, labels):
    data = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    return pickle.dumps({b"data": data, b"labels": labels, b"filenames": [b"a"]}, protocol=2)


def cifar_batches():
    parts = {f"data_batch_{i + 1}": batch(COLOUR[0][2 * i : 2 * i + 2], [i, i + 1]) for i in range(5)}
    return {**parts, "test_batch": batch(COLOUR[1], [7, 8, 9])}


def check_mnist(loaded):
    np.testing.assert_array_equal(loaded.x_train, GREY[0][..., None])
    np.testing.assert_array_equal(loaded.x_test, GREY[1][..., None])
    np.testing.assert_array_equal(loaded.y_train, LABELS[0])
    np.testing.assert_array_equal(loaded.y_test, LABELS[1])
    assert loaded.y_train.dtype == np.int32
    assert loaded.classes == 10


@pytest.mark.parametrize("whole_path", [True, False])
def test_npz(tmp_path, whole_path):
    write_npz(tmp_path / "mnist.npz", GREY, [label[:, None] for label in LABELS])
    check_mnist(load_images("mnist", tmp_path / "mnist.npz" if whole_path else tmp_path))


@pytest.mark.parametrize("compress", [True, False])
def test_idx(tmp_path, compress):
    write_idx(tmp_path, compress)
    check_mnist(load_images("mnist", tmp_path))


@pytest.mark.parametrize("archive", [True, False])
def test_cifar_batches(tmp_path, archive):
    if archive:
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as file:
            for name, content in cifar_batches().items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    else:
        for name, content in cifar_batches().items():
            (tmp_path / name).write_bytes(content)
    loaded = load_images("cifar10", tmp_path)
    np.testing.assert_array_equal(loaded.x_train, COLOUR[0])
    np.testing.assert_array_equal(loaded.x_test, COLOUR[1])
    assert loaded.y_train.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert loaded.y_test.tolist() == [7, 8, 9]


def test_digits():
    pytest.importorskip("sklearn")
    loaded = load_images("digits")
    assert (len(loaded.x_train), len(loaded.x_test)) == (1438, 359)
    assert loaded.x_train.shape[1:] == (8, 8, 1)
    assert loaded.x_train.max() == 255
    assert set(loaded.y_test) == set(range(10))


def test_download_is_checked(server, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    write_npz(buffer, GREY, LABELS)
    server.files["mnist.npz"] = buffer.getvalue()
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(images.IMAGE_DATASETS, "mnist", (10, server.url("mnist.npz"), sha256))
    check_mnist(load_images("mnist"))
    monkeypatch.setitem(images.IMAGE_DATASETS, "mnist", (10, server.url("mnist.npz"), "0" * 64))
    with pytest.raises(OSError, match="must have the SHA-256"):
        load_images("mnist")


@pytest.mark.parametrize(
    "change",
    [
        {"y_test": None},
        {"y_train": LABELS[0][:-1]},
        {"y_train": np.full(6, 10)},
        {"x_train": GREY[0].astype("float32")},
        {"x_train": COLOUR[0][:6]},
        {"x_test": GREY[1][:, :20]},
    ],
)
def test_wrong_arrays(tmp_path, change):
    write_npz(tmp_path / "mnist.npz", GREY, LABELS, **change)
    with pytest.raises(ValueError, match=r"damaged or no such file. Received: .*mnist.npz"):
        load_images("mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist.npz", *images._IDX])
@pytest.mark.parametrize("harm", ["cut", "beginning"])
def test_damaged_files(tmp_path, name, harm):
    if name.endswith("npz"):
        write_npz(tmp_path / name, GREY, LABELS)
    else:
        write_idx(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) - 3] if harm == "cut" else b"xx" + content[2:])
    with pytest.raises(ValueError, match=f"damaged or no such file. Received: .*{name}"):
        load_images("mnist", tmp_path)


def test_a_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    for name, content in cifar_batches().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps({b"data": Evil(), b"labels": [1]}, protocol=2))
    with pytest.raises(ValueError, match="data_batch_2"):
        load_images("cifar10", tmp_path)
    assert not (tmp_path / "evil").exists()


def reduced(function, arguments, state=None):
    """An object whose pickle calls a function and then sets a state."""

    class Object:
        def __reduce__(self):
            return (function, arguments) if state is None else (function, arguments, state)

    return Object()


def nested(depth):
    value = [1] * 10
    for _ in range(depth):
        value = [value] * 10
    return value


PIXELS = np.zeros((2, 3072), np.uint8)
RECONSTRUCT = np._core.multiarray._reconstruct
OF_POINTERS = reduced(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
HARMFUL = {
    "array of pointers": {
        b"data": reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), OF_POINTERS, False, b"8" * 8))
    },
    "array that is too small": {
        b"data": reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (9, 3072), np.dtype("u1"), False, b"8"))
    },
    "array of numbers with a fraction": {b"data": PIXELS, b"labels": np.array([0.2, np.nan])},
    "images of large numbers": {b"data": PIXELS.astype(int) + 300, b"labels": [1, 1]},
    "array by columns": {b"data": np.asfortranarray(PIXELS + np.arange(2, dtype="u1")[:, None])},
    "array in the other order of bytes": {b"data": PIXELS, b"labels": np.array([1, 2], ">i4")},
    "lists in lists": {b"data": PIXELS, b"labels": nested(30)},
    "changed function": {b"data": PIXELS, b"labels": reduced(codecs.encode, ("a", "latin1"), {"b": 1})},
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_pickle_makes_arrays_of_bytes_and_integers_only(tmp_path, name):
    content = {b"labels": [1, 1], **HARMFUL[name]}
    for file, batch_content in cifar_batches().items():
        (tmp_path / file).write_bytes(batch_content)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=r"damaged or no such file\. Received: .*data_batch_2"):
        load_images("cifar10", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".",  # a memo of two thousand million entries
        b"\x80\x02c_codecs\nencode\nq\x00X\x00\x00\x10\x00"
        + b"a" * 2**20
        + b"q\x01X\x06\x00\x00\x00latin1q\x02]("
        + b"h\x00h\x01h\x02\x86R" * 2**16
        + b"e.",  # 64 GB of bytes
    ],
    ids=["memo", "bytes"],
)
def test_a_small_pickle_takes_little_memory(tmp_path, content):
    for file, batch_content in cifar_batches().items():
        (tmp_path / file).write_bytes(batch_content)
    (tmp_path / "data_batch_2").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="data_batch_2"):
            load_images("cifar10", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def zipped_zeros(path):
    write_npz(path, GREY, LABELS)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    header = io.BytesIO()
    shape = (20 * 2**14, 32, 32)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in parts.items():
            with archive.open(name, "w") as file:
                file.write(header.getvalue() if name == "x_train.npy" else content)
                for _ in range(20 if name == "x_train.npy" else 0):
                    file.write(bytes(2**24))


def gzipped_zeros(path):
    with gzip.open(path, "w", compresslevel=1) as file:
        file.write(struct.pack(">BBBB3I", 0, 0, 8, 3, 6, 28, 28))
        for _ in range(20):
            file.write(bytes(2**24))


def sparse_member(path):
    """An archive of a thousand bytes with a member of which 8 GB are said to be zeros."""
    member = tarfile.TarInfo("cifar/data_batch_1")
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "cifar/data_batch_1",
        "GNU.sparse.realsize": str(2**33),
    }
    content = b"1\n0\n0\n".ljust(512, b"\0")
    member.size = len(content)
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("dataset", "file", "write"),
    [
        ("mnist", "mnist.npz", zipped_zeros),
        ("mnist", f"{images._IDX[0]}.gz", gzipped_zeros),
        ("cifar10", "cifar-10-python.tar.gz", sparse_member),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_small_file_that_would_become_a_large_one(tmp_path, dataset, file, write):
    if dataset == "mnist" and file.endswith(".gz"):
        write_idx(tmp_path, compress=True)
    write(tmp_path / file)
    assert (tmp_path / file).stat().st_size < 2**22
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="damaged or no such file"):
            load_images(dataset, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


def test_labels_in_an_array_as_in_a_list(tmp_path):
    for file, content in cifar_batches().items():
        (tmp_path / file).write_bytes(content)
    expected = load_images("cifar10", tmp_path)
    for index in range(5):
        part = batch(COLOUR[0][2 * index : 2 * index + 2], np.array([index, index + 1]))
        (tmp_path / f"data_batch_{index + 1}").write_bytes(part)
    found = load_images("cifar10", tmp_path)
    for part in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))


def test_partial_folders(tmp_path):
    write_idx(tmp_path)
    (tmp_path / images._IDX[1]).unlink()
    with pytest.raises(ValueError, match=f"which lacks {images._IDX[1]}"):
        load_images("mnist", tmp_path)
    with pytest.raises(ValueError, match="which lacks data_batch_1"):
        load_images("cifar10", tmp_path)
    with pytest.raises(ValueError, match="`data_dir` must be a folder"):
        load_images("mnist", tmp_path / "none")
    with pytest.raises(ValueError, match="`name` must be one of"):
        load_images("imagenet")
