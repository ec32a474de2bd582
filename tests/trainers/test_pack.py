"""Runs that travel: packed and unpacked they are what they were, and nothing else is taken for them."""

import hashlib
import io
import json
import os
import random
import shutil
import zipfile

import h5py
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainers import coding
from trainers.files import sha256
from trainers.lock import Lock
from trainers.manifest import OTHER_NAMES
from trainers.package import Package
from trainers.parts import name_of
from trainers.spans import SMALLEST, spans
from trainers.workdir import RunError, Workdir

FLAGS = (
    *("--dataset=text", "--units=16", "--layers=1", "--batch_size=4", "--bptt=10", "--sparsity=0.5"),
    *("--learning_rate=5", "--noexport"),
)
PART_SIZE = 12_000  # bytes
SMALL_PARTS = f"--part_size={PART_SIZE / 2**20}"


@pytest.fixture(scope="module")
def run(trainer, corpus, tmp_path_factory):
    """The folder of a finished run, which may go on."""
    folder = tmp_path_factory.mktemp("run") / "run"
    result = trainer("language_model").run(folder, f"--data_dir={corpus}", "--epochs=2", *FLAGS)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def pack(trainer):
    return trainer("pack").run


@pytest.fixture
def unpack(trainer):
    return trainer("unpack").run


@pytest.fixture(scope="module")
def packed(trainer, run, tmp_path_factory):
    """A package of it in several parts."""
    folder = tmp_path_factory.mktemp("packed") / "package"
    result = trainer("pack").run(run, f"--output={folder}", SMALL_PARTS)
    assert result.returncode == 0, result.stderr
    return folder


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def carried(folder):
    return {name: content for name, content in content_of(folder).items() if not name.startswith(".")}


# Arrays


@hypothesis.given(
    hnp.arrays(
        st.sampled_from(["<u1", "<u2", "<u4", "<u8"]),
        st.integers(0, 300),
        elements=st.integers(0, 255) | st.just(0),
    )
    | hnp.arrays(st.sampled_from(["<f2", "<f4", "<f8", "<i8", "?"]), st.integers(0, 300)).map(
        lambda array: array.view(f"<u{array.itemsize}")
    )
)
def test_an_array_is_coded_bit_for_bit(array):
    coded = coding.encode(array)
    decoded = coding.decode(coded)
    assert decoded.dtype == array.dtype
    assert decoded.tobytes() == array.tobytes()


def test_weights_take_what_their_noise_takes_and_few_values_less():
    generator = np.random.default_rng(0)
    weights = generator.normal(0, 0.1, 100_000).astype("<f4").view("<u4")
    births = generator.choice(np.arange(8) * 1327.0, 100_000).astype("<f4").view("<u4")
    bits = [8 * sum(map(len, coding.encode(array).blocks)) / array.size for array in (weights, births)]
    # 23 bits of mantissa, a sign, and 2.3 bits, the entropy of the exponents; 3 bits for one of eight.
    assert 26.3 < bits[0] < 27.0
    assert 3.0 <= bits[1] < 3.2


def test_noise_takes_no_more_than_it_is():
    noise = np.random.default_rng(0).integers(0, 2**32, 10_000, np.uint32)
    assert [len(block) for block in coding.encode(noise).blocks] == [10_000] * 4


@pytest.mark.parametrize("kind", [np.float32, np.uint32])
def test_damaged_blocks_are_not_expanded(kind):
    array = np.arange(5000).astype(kind).view("<u4") if kind is np.float32 else np.zeros(5000, "<u4")
    coded = coding.encode(array)
    coded.entries -= 1
    with pytest.raises(ValueError, match="bytes"):
        coding.decode(coded)


def test_the_arrays_of_a_file_are_found_where_they_are(tmp_path):
    """Also those of HDF5 within an archive; small ones and compressed members are passed over."""
    generator = np.random.default_rng(0)
    arrays = [generator.random(shape) for shape in ((SMALLEST // 8,), (30, 40), (SMALLEST // 8 - 1,))]
    hdf5 = io.BytesIO()
    with h5py.File(hdf5, "w") as file:
        for index, array in enumerate(arrays):
            file[f"group/{index}"] = array.astype("float32" if index == 1 else "float64")
        file.create_dataset("chunked", data=arrays[1], chunks=(10, 10))
        file["no shape"] = 3.0
        file["name"] = "text"
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy(arrays[0]))
        archive.writestr("b.npy", npy(arrays[1]), zipfile.ZIP_DEFLATED)
        archive.writestr("c.npy", npy(arrays[2]))
        archive.writestr("weights.h5", hdf5.getvalue())
        archive.writestr("other.txt", bytes(5000))
    content = path.read_bytes()
    found = [content[span.start : span.end] for span in spans(path)]
    expected = [arrays[0].tobytes(), arrays[0].tobytes(), arrays[1].astype("float32").tobytes()]
    assert sorted(found) == sorted(expected)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_no_array_is_found_where_there_is_none(run, tmp_path):
    """Whatever becomes of a file, what is found is within it, and no error."""
    generator = random.Random(0)
    path = tmp_path / "file"
    for name in ("masks-first.npz", "final.keras"):
        whole = (run / name).read_bytes()
        for _ in range(200):
            changed = bytearray(whole)
            for _ in range(generator.choice((1, 1, 8))):
                start = generator.randrange(len(changed))
                changed[start : start + generator.choice((1, 4))] = generator.randbytes(
                    generator.choice((0, 1, 4))
                )
            path.write_bytes(bytes(changed))
            end = 0
            for span in spans(path):
                assert end <= span.start < span.end <= len(changed)
                end = span.end
    huge = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 4), }" % 2**70
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(huge).to_bytes(2, "little") + huge + bytes(5000))
    assert spans(path) == []


# A run


def test_a_run_that_travels_between_steps_ends_as_one_that_stays(trainer, corpus, pack, unpack, tmp_path):
    """Two steps an epoch, with dropout, rewiring and averages that begin; the corpus travels, too."""
    train = trainer("language_model").run
    flags = (
        *("--dataset=text", "--units=8", "--layers=1", "--batch_size=8", "--bptt=75", "--sparsity=0.5"),
        *("--learning_rate=20", "--epochs=4", "--dropout=0.3", "--patience=1", "--noexport", "--seed=3"),
    )
    stayed, moved = tmp_path / "stayed", tmp_path / "moved"
    result = train(stayed, f"--data_dir={corpus}", *flags)
    assert result.returncode == 0, result.stderr
    for machine in range(4):
        data = shutil.copytree(corpus, tmp_path / f"corpus {machine}")
        limit = ["--time_limit=0"] if machine < 3 else []
        result = train(moved, f"--data_dir={data}", *flags, *limit)
        assert result.returncode == (75 if machine < 3 else 0), result.stderr
        package, left = tmp_path / f"package {machine}", content_of(moved)
        assert pack(moved, f"--output={package}", "--part_size=0.01").returncode == 0
        moved = tmp_path / f"moved {machine}"
        assert unpack(moved, f"--input={package}").returncode == 0
        assert content_of(moved) == left
    for name in ("checkpoint-00004.npz", "results.json", "masks-last.npz"):
        assert (moved / name).read_bytes() == (stayed / name).read_bytes()


def test_each_file_of_a_run_is_carried_or_made_again(run, trainer):
    """A new one must be decided about."""
    made_again = {"tensorboard", "saved_model", "text_model", "report.html"}
    names = {path.name for path in run.iterdir()} - made_again
    assert names | {"history.png"} == {"checkpoint-00002.npz", *OTHER_NAMES}  # drawn where matplotlib is


def test_a_package_is_smaller_than_the_run(run, packed):
    sizes = [sum(map(len, content_of(folder).values())) for folder in (run, packed)]
    assert sizes[1] < 0.5 * sizes[0]


def test_a_package_is_the_same_again_and_in_several_sittings(run, packed, pack, tmp_path):
    expected = content_of(packed)
    parts = sorted(set(expected) - {"manifest.json"})
    assert len(parts) > 2
    assert parts == [name_of(number) for number in range(1, len(parts) + 1)]
    assert {len(expected[name]) for name in parts[:-1]} == {PART_SIZE}
    assert len(expected[parts[-1]]) <= PART_SIZE
    output = tmp_path / "package"
    assert pack(run, f"--output={output}", SMALL_PARTS, "--parts=2").returncode == 0
    assert set(content_of(output)) == {"manifest.json", "part-0002"}
    assert pack(run, f"--output={output}", SMALL_PARTS, "--parts=1,3-99").returncode == 0
    assert content_of(output) == expected
    assert pack(run, f"--output={output}", SMALL_PARTS).returncode == 0
    assert content_of(output) == expected
    result = pack(run, f"--output={tmp_path / 'other'}", SMALL_PARTS, "--parts=90-99")
    assert f"error: --parts must name parts that there are. Received: none of 1-{len(parts)}" in result.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("parts", ["", "0", "4-2", "a", "1;2", "-3", "1-", "99999999"])
def test_parts_are_numbers_and_ranges(run, pack, tmp_path, parts):
    result = pack(run, f"--output={tmp_path / 'package'}", f"--parts={parts}")
    assert result.returncode == 1
    assert f"error: --parts must be numbers and ranges from 1 on, as in 2,5-7. Received: --parts={parts}" in (
        result.stderr
    )


def test_what_two_files_hold_is_stored_once(run, packed):
    """The model of the best epoch, here the checkpoint's, takes no more than its layout."""
    manifest = json.loads((packed / "manifest.json").read_text())
    stored = [sum(content[3]) for content in manifest["contents"]]
    seen, taken = set(), {}
    for file in manifest["files"]:
        used = {index for piece in file["pieces"] for index in piece[2:] if index is not None}
        taken[file["name"]] = sum(stored[index] for index in used - seen)
        seen |= used
    assert taken["checkpoint-00002.npz"] > 10_000
    assert taken["best.keras"] + taken["final.keras"] + taken["masks-last.npz"] < 100


def test_a_run_that_was_killed_is_packed_whole(run, packed, pack, unpack, tmp_path):
    """Between the commit of a checkpoint and the moves of its files."""
    copy, package, moved = tmp_path / "copy", tmp_path / "package", tmp_path / "moved"
    shutil.copytree(run, copy)
    (copy / ".partial-checkpoint-00002.npz").write_bytes((copy / "checkpoint-00002.npz").read_bytes())
    (copy / ".partial-best.keras").write_bytes((copy / "best.keras").read_bytes())
    (copy / "checkpoint-00002.npz").unlink()
    (copy / "best.keras").write_bytes(b"of the epoch before")
    before = content_of(copy)
    assert pack(copy, f"--output={package}", SMALL_PARTS).returncode == 0
    assert content_of(package) == content_of(packed)
    assert content_of(copy) == before
    assert unpack(moved, f"--input={package}").returncode == 0
    assert content_of(moved) == carried(run)


def test_files_of_any_content_are_carried(run, pack, unpack, tmp_path):
    """What a trainer only writes may have been changed; it is none of the program's business."""
    copy, package, moved = tmp_path / "copy", tmp_path / "package", tmp_path / "moved"
    shutil.copytree(run, copy)
    values = np.array([np.nan, -0.0, 0.0, np.inf, 1e-45] * 500, "float32")
    values.view("uint32")[::7] += 12345  # NaNs of several payloads, numbers that are denormal
    arrays = {"floats": values, "none": np.zeros(0), "flags": values > 0, "zeros": np.zeros(5000, "float32")}
    arrays |= {"seeds": np.arange(600, dtype="uint64") << 40, "odd": np.zeros(999, "complex128")}
    np.savez(copy / "masks-first.npz", **arrays)
    (copy / "masks-last.npz").write_bytes(b"")
    (copy / "final.keras").write_bytes(random.Random(0).randbytes(200_000))
    (copy / "history.png").write_bytes(b"PK\x03\x04" * 5000)
    assert pack(copy, f"--output={package}", SMALL_PARTS).returncode == 0
    assert unpack(moved, f"--input={package}").returncode == 0
    assert content_of(moved) == carried(copy)


# What is refused when a run is packed


def check_refused(result, sentence):
    assert result.returncode == 1
    check_sentence(result.stderr, sentence)


def check_sentence(log, sentence):
    assert f"error: {sentence}" in log
    message = log[log.index("error: ") :]
    assert "\n" not in message.strip()
    assert "Received: " in message
    assert len(message) < 1200


def test_what_is_no_run_is_not_packed(run, pack, tmp_path):
    output = f"--output={tmp_path / 'package'}"
    check_refused(pack(tmp_path / "none", output), "--workdir must be the folder of a run. Received: ")
    assert not (tmp_path / "none").exists()
    check_refused(pack(tmp_path, output), "--workdir must be the folder of a run. Received: ")
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(run / "config.json", new)
    check_refused(pack(new, output), "--workdir must be the folder of a run with a checkpoint. Received: ")
    (new / "config.json").write_text("{}")
    check_refused(pack(new, output), "config.json in --workdir must be from this trainer, but is damaged")
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("name", ["checkpoint-00002.npz", "best.keras", "checkpoint.json"])
def test_a_damaged_run_is_not_packed(run, pack, tmp_path, name):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    result = pack(copy, f"--output={tmp_path / 'package'}")
    assert result.returncode == 1
    assert "in --workdir must be" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_in_use_is_not_packed(run, pack, tmp_path):
    with Workdir(run, "language model").open():
        result = pack(run, f"--output={tmp_path / 'package'}")
    check_refused(result, "--workdir must be used by one run at a time. Received: ")
    assert not (tmp_path / "package").exists()


def test_nothing_else_is_written_over(run, packed, pack, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for output in (other / "notes.txt", other):
        check_refused(pack(run, f"--output={output}"), "--output must be ")
    shutil.copytree(packed, tmp_path / "package")
    before = content_of(tmp_path / "package")
    result = pack(run, f"--output={tmp_path / 'package'}", "--part_size=1")
    check_refused(result, "--output must be free, an empty folder or that of this package. Received: ")
    assert content_of(tmp_path / "package") == before
    assert content_of(other) == {"notes.txt": b"mine"}


def test_parts_that_were_written_in_another_way_are_not_mixed(run, copy, pack):
    """As another version of zlib writes them."""

    def change(content):
        content["parts"][0]["sha256"] = "0" * 64

    rewritten(copy, change)
    before = content_of(copy)
    result = pack(run, f"--output={copy}", SMALL_PARTS)
    check_refused(result, "--output must hold parts that were written in the same way. Received: ")
    assert content_of(copy) == before


# What is refused when a package is unpacked


@pytest.fixture
def copy(packed, tmp_path):
    """A copy of the package to be damaged."""
    return shutil.copytree(packed, tmp_path / "copy")


def check_nothing_unpacked(unpack, package, sentence):
    target = package.parent / "target"
    check_refused(unpack(target, f"--input={package}"), sentence)
    assert not target.exists()


def test_missing_parts_are_named(copy, unpack):
    (copy / "part-0001").unlink()
    (copy / "part-0003").unlink()
    check_nothing_unpacked(unpack, copy, "--input must hold all ")
    result = unpack(copy.parent / "target", f"--input={copy}")
    assert "which lacks part-0001, part-0003; fetch them, or pack them again " in result.stderr
    assert "with --parts=1,3" in result.stderr


def test_a_part_that_is_not_as_it_was_is_named(copy, run, pack, unpack, tmp_path):
    other = tmp_path / "other"
    assert pack(run, f"--output={other}", f"--part_size={2 * PART_SIZE / 2**20}").returncode == 0
    part = copy / "part-0002"
    whole = part.read_bytes()
    changes = {
        f"is damaged: it has 1000 bytes of {PART_SIZE}": whole[:1000],
        f"is damaged: it has 0 bytes of {PART_SIZE}": b"",
        "is damaged;": whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:],
        "is part 1 of the package, or damaged": (copy / "part-0001").read_bytes(),
        "is of another package, or damaged": (other / "part-0002").read_bytes(),
        "is no part of a package, or damaged": random.Random(0).randbytes(PART_SIZE),
    }
    for why, content in changes.items():
        part.write_bytes(content)
        check_nothing_unpacked(
            unpack, copy, f"--input must hold the parts as they were written. Received: {part}, which {why}"
        )


@pytest.mark.parametrize("name", ["part-0001 (1)", "part-0099", "part-1"])
def test_a_part_too_many_is_named(copy, unpack, name):
    shutil.copy(copy / "part-0001", copy / name)
    check_nothing_unpacked(
        unpack,
        copy,
        f"--input must hold each part of the package once, and no other. Received: {copy / name}, ",
    )


def test_a_folder_that_is_no_package_is_refused(copy, unpack, tmp_path):
    check_nothing_unpacked(unpack, tmp_path / "none", "--input must be the folder of a package. Received: ")
    (copy / "manifest.json").unlink()
    check_nothing_unpacked(unpack, copy, "--input must be the folder of a package. Received: ")


def test_a_target_that_is_in_use_or_not_empty_is_refused(packed, unpack, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    flag = f"--input={packed}"
    check_refused(unpack(target / "notes.txt", flag), "--workdir must be a folder. Received: ")
    check_refused(unpack(target, flag), "--workdir must be free or an empty folder. Received: ")
    assert content_of(target) == {"notes.txt": b"mine"}
    (target / "notes.txt").unlink()
    lock = Lock(target / ".lock")
    lock.acquire()
    check_refused(unpack(target, flag), "--workdir must be used by one run at a time. Received: ")
    lock.release()
    assert content_of(target) == {}
    (target / ".lock").touch()  # of a process that was killed
    (target / ".partial-config.json").touch()
    assert unpack(target, flag).returncode == 0
    assert set(content_of(target)) == set(json_names(packed))


def json_names(packed):
    return [file["name"] for file in json.loads((packed / "manifest.json").read_text())["files"]]


def rewritten(folder, change):
    """Changes what a manifest says and gives it the checksum of that: not damage, but malice."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    content.pop("checksum")
    listed = {key: value for key, value in content.items() if key != "format"}
    checksum = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "checksum": checksum}))


NAMES_OF_OTHERS = (
    *(
        "../config.json",
        "/tmp/config.json",
        "config.json/..",
        "checkpoint-*.npz",
        "checkpoint-1.npz",
        ".lock",
    ),
    *("checkpoint-00002.npz\n", "notes.txt", "", "best.keras", None, 7, ["config.json"]),
)


@pytest.mark.parametrize("name", NAMES_OF_OTHERS)
def test_names_are_those_of_a_run_and_each_once(copy, unpack, name):
    rewritten(copy, lambda content: content["files"][-1].update(name=name))
    check_nothing_unpacked(unpack, copy, "manifest.json in --input must be as this version ")


def everywhere(content, found):
    """All places of a JSON value, as pairs of what holds it and its key."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        found.append((content, key))
        if isinstance(value, dict | list):
            everywhere(value, found)
    return found


VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2,
    3,
    255,
    256,
    2**31,
    2**63,
    2**70,
    0.5,
    "",
    "x",
    "0" * 64,
    [],
    {},
    [1],
    [[1]],
)


def test_a_manifest_of_bad_will_is_refused_in_a_sentence(copy, tmp_path):
    """Whatever it says: a package is as it was, or nothing is written."""
    whole = (copy / "manifest.json").read_bytes()
    expected = {file["name"]: file["sha256"] for file in json.loads(whole)["files"]}
    target = tmp_path / "target"
    generator = random.Random(0)
    refused = 0
    for _ in range(400):
        (copy / "manifest.json").write_bytes(whole)

        def change(content):
            holder, key = generator.choice(everywhere(content, []))
            value = generator.choice(VALUES)
            if isinstance(holder[key], int) and generator.random() < 0.5:
                value = holder[key] + generator.choice([-1, 1, 8, 2**20])
            if generator.random() < 0.1:
                del holder[key]
            else:
                holder[key] = value

        rewritten(copy, change)
        try:
            Package(copy).unpack(target)
        except RunError as error:
            check_sentence(f"error: {error}", "")
            refused += 1
        else:
            assert {path.name: sha256(path) for path in target.iterdir()} == expected
            shutil.rmtree(target)
        assert not target.exists()
    assert refused > 300
    assert {path.name for path in tmp_path.iterdir()} == {"copy"}


def test_a_damaged_manifest_is_refused(copy):
    whole = (copy / "manifest.json").read_bytes()
    generator = random.Random(0)
    changes = [b"", b"{}", b"[]", b"[" * 100_000, b"\xff\xfe", whole[: len(whole) // 2]]
    for _ in range(100):
        changed = bytearray(whole)
        changed[generator.randrange(len(whole))] ^= 1 << generator.randrange(7)
        changes.append(bytes(changed))
    for content in changes:
        (copy / "manifest.json").write_bytes(content)
        try:
            Package(copy)
        except RunError as error:
            check_sentence(f"error: {error}", "manifest.json in --input must be as this version ")
        else:  # white space, or how a number or letter is written
            assert json.loads(content) == json.loads(whole)


# Disks that are full


def test_without_room_nothing_is_left(largest_file, run, packed, pack, unpack, tmp_path):
    target = tmp_path / "target"
    for size, name in ((1000, "part-0001"), (3000, "manifest.json")):
        with largest_file(size):
            result = pack(
                run, f"--output={target}", SMALL_PARTS if name == "part-0001" else "--part_size=0.002"
            )
        check_refused(result, f"{name} could not be written: File too large. Received: ")
        assert not target.exists()
    largest = max((path for path in run.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
    for size, name in ((1000, "checkpoint-00002.npz"), (largest.stat().st_size - 1, largest.name)):
        with largest_file(size):
            result = unpack(target, f"--input={packed}")
        check_refused(result, f"{name} could not be written: File too large. Received: ")
        assert not target.exists()
    target.mkdir()
    with largest_file(1000):
        assert unpack(target, f"--input={packed}").returncode == 1
    assert list(target.iterdir()) == []
    if os.geteuid():  # root writes anywhere
        target.chmod(0o500)
        check_refused(unpack(target, f"--input={packed}"), ".lock could not be written: Permission denied.")
        target.chmod(0o700)
