"""Reading small images in every published form, and refusing what is damaged."""

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
import os
import pathlib
import pickle
import struct
import tarfile
import tempfile
import time
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
        {"y_train": LABELS[0].astype("U1")},
        {"y_train": LABELS[0].astype("S1")},
        {"y_train": np.full(6, "2020-01-01", "M8[D]")},
        {"y_train": np.full(6, 3, "m8[D]")},
        {"y_train": np.full(6, 0.2)},
        {"y_train": np.full(6, np.nan)},
        {"y_train": np.full(6, 1, "complex64")},
        {"y_train": np.full(6, True)},
        {"y_train": np.full(6, -1)},
        {"y_train": np.full(6, 2**63, "uint64")},
        {"y_train": LABELS[0].astype(object)},
        {"x_train": GREY[0].astype(object)},
        {"x_train": GREY[0].view([("a", "u1")])},
        {"x_train": GREY[0][:0], "y_train": LABELS[0][:0]},
        {"y_train": np.array(3)},
    ],
)
def test_wrong_arrays(tmp_path, change):
    write_npz(tmp_path / "mnist.npz", GREY, LABELS, **change)
    with pytest.raises(ValueError, match=r"damaged or no such file. Received: .*mnist.npz"):
        load_images("mnist", tmp_path)


def test_arrays_in_other_orders(tmp_path):
    columns, other_order = np.asfortranarray(GREY[0]), LABELS[1].astype(">i8")
    write_npz(tmp_path / "mnist.npz", GREY, LABELS, x_train=columns, y_test=other_order)
    check_mnist(load_images("mnist", tmp_path))


def npy(header, version=1, content=b""):
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + content


def described(kind, shape):
    return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()


ARRAYS = {
    "no array": b"something else",
    "cut in the header": npy(described("'|u1'", (6, 28, 28)))[:20],
    "too short": npy(described("'|u1'", (6, 28, 28)), content=bytes(100)),
    "too long": npy(described("'|u1'", (6, 28, 28)), content=bytes(6 * 784 + 1)),
    "ten million million": npy(described("'|u1'", (10**13,))),
    "a product that wraps": npy(described("'|u1'", (2**32, 2**32, 1))),
    "negative": npy(described("'|u1'", (-1, -28, 28)), content=bytes(784)),
    "a hundred axes": npy(described("'|u1'", (1,) * 100), content=b"a"),
    "deep header": npy(described("[" * 3000 + "]" * 3000, (1,))),
    "signs": npy(described("'|u1'", "-" * 9000 + "1")),
    "expression": npy(described("'|u1'", "(9**9**9,)")),
    "long header": npy(described("'|u1'", (6, 28, 28)).ljust(2**26), version=2),
    "pickled": npy(described("'|O'", (6, 28, 28)), content=pickle.dumps(GREY[0].astype(object))),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_npz_file_of_no_arrays(tmp_path, name):
    write_npz(tmp_path / "mnist.npz", GREY, LABELS, x_train=None)
    with zipfile.ZipFile(tmp_path / "mnist.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", ARRAYS[name])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"damaged or no such file\. Received: .*mnist\.npz, x_train"):
            load_images("mnist", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def renamed_npy(path):
    np.save(path.with_suffix(".npy"), GREY[0])
    path.with_suffix(".npy").rename(path)


def squeezed(path):
    """Files that this package cannot unpack within bounds."""
    write_npz(path, GREY, LABELS, x_train=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x_train.npy", npy(described("'|u1'", (6, 28, 28)), content=bytes(6 * 784)))


def marked(offset, value):
    """Changes what the directory of a zip file says of its first member."""

    def write(path):
        write_npz(path, GREY, LABELS)
        content = bytearray(path.read_bytes())
        start = content.index(b"PK\x01\x02") + offset
        content[start : start + len(value)] = value
        path.write_bytes(content)

    return write


def many_members(path):
    write_npz(path, GREY, LABELS)
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(6000):
            archive.writestr(f"{number}", b"")


@pytest.mark.parametrize(
    "write",
    [
        renamed_npy,
        squeezed,
        many_members,
        pytest.param(marked(8, b"\x01\x00"), id="encrypted"),
        pytest.param(marked(6, b"\xff\x00"), id="of a later version"),
        pytest.param(marked(10, b"\x63\x00"), id="packed in an unknown way"),
        pytest.param(marked(16, b"abcd"), id="of another checksum"),
        pytest.param(marked(42, b"\xff\xff\xff\x7f"), id="behind the end"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"PK\x05\x06" + b"\xff" * 18), id="directory only"),
    ],
)
def test_a_file_that_is_no_npz(tmp_path, write):
    write(tmp_path / "mnist.npz")
    for path in (tmp_path, tmp_path / "mnist.npz"):
        with pytest.raises(ValueError, match=r"damaged or no such file\. Received: .*mnist\.npz") as error:
            load_images("mnist", path)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "start",
    [
        struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 4),
        struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 28, 28),
        struct.pack(">BBBB3I", 0, 0, 8, 3, 0, 28, 28),
        struct.pack(">BBBB3I", 0, 0, 13, 3, 6, 28, 28),
        struct.pack(">BBBB3I", 0, 0, 8, 2, 6, 784, 0),
        struct.pack(">BBBB3I", 0, 0, 8, 255, 6, 28, 28),
        struct.pack(">BBBB2I", 0, 0, 8, 3, 6, 28),
        b"",
    ],
)
@pytest.mark.parametrize("compress", [True, False])
def test_the_beginning_of_an_idx_file(tmp_path, start, compress):
    write_idx(tmp_path, compress)
    name = f"{images._IDX[0]}.gz" if compress else images._IDX[0]
    content = start + GREY[0].tobytes() if len(start) == 16 else start
    (tmp_path / name).write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(ValueError, match=f"damaged or no such file. Received: .*{name}"):
        load_images("mnist", tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-9],
        lambda content: content[:-8] + b"abcd" + content[-4:],
        lambda content: content + b"x",
        lambda content: content + gzip.compress(b"x"),
        lambda content: b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 2**24,
        lambda content: b"\x1f\x8b\x08\xe0" + content[4:],
    ],
    ids=["cut", "checksum", "more", "another", "long name", "unknown flags"],
)
def test_a_damaged_gzip_file(tmp_path, change):
    write_idx(tmp_path, compress=True)
    path = tmp_path / f"{images._IDX[2]}.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"damaged or no such file. Received: .*{path.name}"):
        load_images("mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist.npz", images._IDX[0]])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path.name)])
def test_what_is_no_file_is_missing(tmp_path, name, make):
    write_idx(tmp_path)
    (tmp_path / images._IDX[0]).unlink()
    make(tmp_path / name)
    with pytest.raises(ValueError, match=f"which lacks {images._IDX[0]}"):
        load_images("mnist", tmp_path)
    with pytest.raises(ValueError, match=r"`data_dir` must be a folder or an \.npz file|which lacks"):
        load_images("mnist", tmp_path / name)


def test_a_name_that_no_file_can_have():
    with pytest.raises(ValueError, match="File name too long"):
        load_images("mnist", "a" * 5000)


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
    "array of many axes": {
        b"data": reduced(
            RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1, 1, 2, 1, 3072), np.dtype("u1"), False, bytes(6144))
        )
    },
    "array of a negative size": {
        b"data": reduced(
            RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (-2, -3072), np.dtype("u1"), False, bytes(6144))
        )
    },
    "more labels than images": {b"data": PIXELS, b"labels": [1, 1, 1]},
    "no images": {b"data": PIXELS[:0], b"labels": []},
    "large labels": {b"data": PIXELS, b"labels": [2**31, 2**100]},
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
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",  # a bytearray of a terabyte
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x02T\xff\xff\xff\x7f.",
        b"\x80\x02}(" + b")" + b"2\x86" * 60 + b"K\x01u.",  # a key whose hash takes 2 ** 60 steps
        b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
        b"\x80\x04)" + b"q\x00h\x00\x86" * 60 + b"q\x00h\x00\x93)R.",
        b"\x80\x02}(U\x06labelscnumpy\ndtype\n)" + b"q\x00h\x00\x86" * 60 + b"\x85Ru.",
        b"\x80\x02X" + struct.pack("<I", 10_000_000) + "\U0001f600".encode() + b"a" * 9_999_996 + b".",
        b"I" + b"9" * 10_000_000 + b"\n.",
        b"c" + b"a" * 10_000_000,
        b"\x80\x02)\x81.",
        b"\x80\x02\x86.",
        b"\x80\x02)K\x01a.",
        b"\x80\x02K\x01)R.",
        b"\x80\x02U\xffabc.",
        b"\x80\x02}.trailing",
        b"\x80\x02K\x01Q.",
        b"0.",
        b"(0t.",
        b"\x80\x02h\x07.",
        b"\x80\x02]q\x00h\x00a.",
        b"\x80\x02}U\x04dataK\x01s",
        b"",
    ],
    ids=lambda content: content[:12].hex(),
)
def test_a_small_pickle_takes_little_memory(tmp_path, content):
    for file, batch_content in cifar_batches().items():
        (tmp_path / file).write_bytes(batch_content)
    (tmp_path / "data_batch_2").write_bytes(content)
    start = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="data_batch_2"):
            load_images("cifar10", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**28
        assert time.monotonic() < start + 30
    finally:
        tracemalloc.stop()


def test_a_pickle_of_many_steps_is_given_up(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"](" * 5_000_000)
    for file, content in cifar_batches().items():
        if file != "data_batch_1":
            (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_1.*more than 750,000 steps"):
        load_images("cifar10", tmp_path)


def test_a_batch_beyond_the_published_size(tmp_path):
    for file, content in cifar_batches().items():
        (tmp_path / file).write_bytes(content)
    os.truncate(tmp_path / "data_batch_3", 2**33)
    with pytest.raises(
        ValueError, match=r"data_batch_3 \(8,589,934,592 bytes, of which at most 61,505,536 are read"
    ):
        load_images("cifar10", tmp_path)


def packed_members(path, *members):
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def member(name, kind=tarfile.REGTYPE, **headers):
    result = tarfile.TarInfo(name)
    result.type = kind
    result.pax_headers = headers
    return result


def tar_of_batches():
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "a")
        packed_members(path, *((member(name), content) for name, content in cifar_batches().items()))
        return gzip.decompress(path.read_bytes())


def damaged_member(offset, value):
    """Changes the header of an archive's first member, with the right checksum."""

    def write(path):
        content = bytearray(tar_of_batches())
        content[offset : offset + len(value)] = value
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
        path.write_bytes(gzip.compress(bytes(content)))

    return write


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(lzma.compress(b"a" * 10_000)[:-20]),
        lambda path: path.write_bytes(bz2.compress(b"a" * 10_000)),
        lambda path: path.write_bytes(gzip.compress(b"a" * 10_000)),
        lambda path: path.write_bytes(gzip.compress(bytes(10_000))),
        lambda path: packed_members(path, (member("x", tarfile.DIRTYPE), b"")),
        lambda path: packed_members(path, *[(member(f"{i}"), b"") for i in range(2000)]),
        lambda path: packed_members(path, (member("a", tarfile.XHDTYPE), b"1" * 2**18)),
        lambda path: packed_members(path, (member("a", tarfile.GNUTYPE_LONGNAME), bytes(2**24))),
        lambda path: path.write_bytes(gzip.compress(tar_of_batches()[:700])),
        lambda path: path.write_bytes(gzip.compress(tar_of_batches()[:3000])),
        lambda path: path.write_bytes(gzip.compress(tar_of_batches()[:-40_000])),
        damaged_member(124, b"77777777777\0"),
        damaged_member(124, b"\xff" * 12),
        damaged_member(124, b"\x80" + b"\xff" * 11),
        damaged_member(124, b"abc"),
        damaged_member(156, tarfile.GNUTYPE_SPARSE),
        damaged_member(156, tarfile.SYMTYPE),
        damaged_member(0, b"other"),
    ],
)
def test_a_damaged_archive(tmp_path, write):
    path = tmp_path / "cifar-10-python.tar.gz"
    write(path)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"damaged or no such file\. Received: .*cifar-10-python\.tar\.gz"):
        load_images("cifar10", tmp_path)
    assert time.monotonic() < start + 10


def test_an_archive_that_is_cut_or_changed(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    packed_members(path, *((member(name), content) for name, content in cifar_batches().items()))
    content = path.read_bytes()
    load_images("cifar10", tmp_path)
    for position in range(0, len(content), len(content) // 50):
        path.write_bytes(content[:position])
        with pytest.raises(ValueError, match="damaged"):
            load_images("cifar10", tmp_path)
        if position > 10:  # what stands before is of no consequence: a time, a system
            path.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
            with pytest.raises(ValueError, match="damaged"):
                load_images("cifar10", tmp_path)


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
