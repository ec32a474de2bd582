"""Feeds damaged files and answers to all that reads data, and counts what is not a documented error.

    python -m tools.fuzz_readers --inputs=2000 --json=FILE      # of each reader; repeatable
    python -m tools.fuzz_readers --readers=pickle,tar --seconds=60
    python -m tools.fuzz_readers --readers=pickle --atheris --seconds=1800

Inputs are small valid files, changed a few times at random. With --atheris (`pip install atheris`) libFuzzer
chooses the changes by the lines that an input reaches, for one reader. A reader may return, or raise one of
its documented exceptions in one line; it may not take longer than --longest or more than --most_memory. What
else happens is written to the JSON with the input, and the exit status is 1.
"""

import argparse
import atexit
import collections
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import os
import pathlib
import pickle
import random
import resource
import shutil
import signal
import socket
import struct
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable

# A run without a tool that follows what is reached imports the readers as they are.
if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["keras_selfish.data"]):
        import keras_selfish.data  # noqa: F401

import absl.logging
import numpy as np

from keras_selfish.data import DownloadError, Vocabulary, download, load_corpus, load_images
from keras_selfish.data.image_files import DamagedFile
from trainers.files import RunError
from trainers.package import Package, write_package

LONGEST_MESSAGE = 1000  # characters
LARGEST_INPUT = 1 << 16  # bytes
KEPT = 20  # findings of which the input is kept, of each reader


class Overdue(BaseException):
    """A reader took too long; no reader catches this."""


@dataclasses.dataclass
class Reader:
    """What is fed.

    Attributes:
        name: Its name on the command line.
        read: Takes an input and a folder that it has for itself; returns or raises.
        seeds: Small valid inputs.
        documented: The exceptions that may be raised, no classes derived from them.
    """

    name: str
    read: Callable
    seeds: list
    documented: tuple


# Small valid files

GENERATOR = np.random.default_rng(0)
GREY = [GENERATOR.integers(0, 256, (count, 4, 4)).astype(np.uint8) for count in (6, 4)]
CLASSES = [GENERATOR.integers(0, 10, count).astype(np.uint8) for count in (6, 4)]
IDX = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]
BATCHES = [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]
TEXT = b"The cat's dog, \xc3\xa9t\xc3\xa9!\n" * 6 + b"<unk> a b c d ==== e f g\n" * 6


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def npz(compress=False, **change):
    content = io.BytesIO()
    arrays = {"x_train": GREY[0], "y_train": CLASSES[0], "x_test": GREY[1], "y_test": CLASSES[1], **change}
    (np.savez_compressed if compress else np.savez)(content, **arrays)
    return content.getvalue()


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def batch(protocol=2, labels=None):
    pixels = np.arange(3072).reshape(1, 3072).astype(np.uint8)
    names = [b"a.png"]
    labels = [3] if labels is None else labels
    return pickle.dumps({b"data": pixels, b"labels": labels, b"filenames": names}, protocol=protocol)


def python2_batch():
    """A batch in the operations that Python 2 writes."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85U\x01b\x87Rq\x06"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x07U\x02u1K\x00K\x01\x87Rq\x08(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", 3072) + bytes(3072) + b"tb"
    )
    return b"\x80\x02}q\x01(U\x06labelsq\x02](K\x01eU\x04dataq\x03" + array + b"u."


def tar():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in (*BATCHES, "readme.html"):
            part = batch(4)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(part)
            archive.addfile(member, io.BytesIO(part))
    return content.getvalue()


BODY = bytes(range(200))
SHA256 = hashlib.sha256(BODY).hexdigest()


def answers():
    length = b"Content-Length: %d\r\n" % len(BODY)
    chunks = b"".join(b"32\r\n" + BODY[i : i + 50] + b"\r\n" for i in range(0, len(BODY), 50)) + b"0\r\n\r\n"
    ok = b"HTTP/1.1 200 OK\r\nServer: a\r\n"
    part = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 100-%d/%d\r\n" % (len(BODY) - 1, len(BODY))
    return [
        ok + length + b"\r\n" + BODY,
        ok + b"\r\n" + BODY,
        ok + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
        ok + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(BODY, mtime=0),
        part + b"Content-Length: %d\r\n\r\n" % (len(BODY) - 100) + BODY[100:],
        b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/a\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\nLocation: /other\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + ok + length + b"\r\n" + BODY,
        b"HTTP/1.0 503 Busy\r\n\r\n",
        b"HTTP/1.1 416 Range\r\nContent-Range: bytes */200\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
    ]


# Reading them


def write_once(path, content):
    if not path.exists():
        path.write_bytes(content)


def read_mnist(name, wrap=lambda content: content):
    def read(content, folder):
        for part, array in zip(IDX, (GREY[0], CLASSES[0], GREY[1], CLASSES[1]), strict=True):
            if part != name.removesuffix(".gz"):
                write_once(folder / part, idx(array))
        (folder / name).write_bytes(wrap(content))
        check_images(load_images("mnist", folder))

    return read


def with_first_array(content):
    """A whole `.npz` file around an `.npy` file."""
    result = io.BytesIO(npz())
    with zipfile.ZipFile(result) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(result, "w") as archive:
        for name, part in {**parts, "x_train.npy": content}.items():
            archive.writestr(name, part)
    return result.getvalue()


def read_batch(content, folder):
    for name in BATCHES[1:]:
        write_once(folder / name, VALID_BATCH)
    (folder / BATCHES[0]).write_bytes(content)
    check_images(load_images("cifar10", folder))


def read_archive(wrap):
    def read(content, folder):
        (folder / "cifar-10-python.tar.gz").write_bytes(wrap(content))
        check_images(load_images("cifar10", folder))

    return read


def check_images(images):
    for pixels, classes in ((images.x_train, images.y_train), (images.x_test, images.y_test)):
        assert pixels.dtype == np.uint8
        assert len(pixels) == len(classes) > 0
        assert 0 <= classes.min() <= classes.max() < images.classes


def read_text(content, folder):
    (folder / "a.txt").write_bytes(content)
    check_corpus(load_corpus("text", folder))


def read_tokens(content, folder):
    for part in ("train", "valid", "test"):
        (folder / f"{part}.txt").write_bytes(content)
    check_corpus(load_corpus("wikitext2", folder))


def check_corpus(corpus):
    for split in (corpus.train, corpus.validation, corpus.test):
        assert 0 <= split.min() <= split.max() < len(corpus.vocabulary)


def read_vocabulary(content, folder):
    (folder / "vocabulary.txt").write_bytes(content)
    vocabulary = Vocabulary.load(folder / "vocabulary.txt")
    assert vocabulary.encode(vocabulary.tokens).tolist() == list(range(len(vocabulary)))


class AnswerServer:
    """Answers all that connects to a port of this machine with the bytes in `answer`."""

    def __init__(self):
        self.answer = b""
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/file"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            connection, _ = self._socket.accept()
            with connection:
                try:
                    connection.settimeout(5)
                    connection.recv(1 << 16)
                    connection.sendall(self.answer)
                    if len(self.answer) % 4 == 0:  # a reset instead of an end
                        linger = struct.pack("ii", 1, 0)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                except OSError:
                    continue  # the client has gone: what it makes of that is the subject


@functools.cache
def answer_server():
    return AnswerServer()


def read_answer(content, folder):
    """Downloads anew where the input has an even length, else the end of a file that began to arrive."""
    server = answer_server()
    server.answer = content
    path = folder / "file"
    path.unlink(missing_ok=True)
    path.with_name("file.part").unlink(missing_ok=True)
    if len(content) % 2:
        (folder / "file.part").write_bytes(BODY[:100])
    try:
        download(server.url, path, SHA256, timeout=1.0, attempts=2, pause=0.0, max_bytes=1 << 20)
    except DownloadError:
        assert not path.exists()
        raise
    assert path.read_bytes() == BODY


@functools.cache
def package():
    """The files of a small package."""
    files = {"config.json": b"{}", "checkpoint.json": b"{}", "checkpoint-00001.npz": bytes(3000) + npz()}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: pathlib.Path(folder) / name for name in files}
        for name, content in files.items():
            paths[name].write_bytes(content)
        output = pathlib.Path(folder) / "package"
        write_package(paths, output, 1 << 20, lambda number: True)
        return {path.name: path.read_bytes() for path in output.iterdir()}


def read_package(file):
    """A reader of a package of which a file is the input; its manifest agrees with it in all checksums."""

    def read(content, folder):
        source, target = folder / "package", folder / "target"
        source.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        for name, whole in {**package(), file: content}.items():
            (source / name).write_bytes(whole)
        agree(source / "manifest.json", content if file != "manifest.json" else None)
        try:
            names = Package(source).unpack(target)
        except RunError:
            assert not target.exists()
            raise
        assert sorted(path.name for path in target.iterdir()) == sorted(names)

    return read


def agree(path, part):
    """Gives a manifest, if it is one, the checksums that it should have; those of a part too, if not None."""
    try:
        manifest = json.loads(path.read_bytes())
        if part is not None:
            manifest["parts"] = [{"size": len(part), "sha256": hashlib.sha256(part).hexdigest()}]
        listed = {key: value for key, value in manifest.items() if key not in ("format", "checksum")}
    except (ValueError, AttributeError, TypeError, RecursionError):
        return
    digest = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**manifest, "checksum": digest}))


def repacked(content):
    return gzip.compress(content, compresslevel=1)


VALID_BATCH = batch()


def readers():
    """All readers by name."""
    images = (DamagedFile, ValueError)
    text = (ValueError, FileNotFoundError)
    arrays = [npy(GREY[0]), npy(np.asfortranarray(GREY[0]))]
    batches = [batch(protocol) for protocol in (2, 3, 4)] + [python2_batch(), batch(4, np.array([3]))]
    listed = [
        Reader("idx", read_mnist(IDX[0]), [idx(GREY[0])], images),
        Reader("gzip", read_mnist(f"{IDX[0]}.gz"), [gzip.compress(idx(GREY[0]), mtime=0)], images),
        Reader("npz", read_mnist("mnist.npz"), [npz(), npz(compress=True)], images),
        Reader("npy", read_mnist("mnist.npz", with_first_array), arrays, images),
        Reader("pickle", read_batch, batches, images),
        Reader("tar", read_archive(repacked), [tar()], images),
        Reader("archive", read_archive(bytes), [repacked(tar())], images),
        Reader("text", read_text, [TEXT], text),
        Reader("tokens", read_tokens, [TEXT, b" a <unk> b \n \n"], text),
        Reader("vocabulary", read_vocabulary, [b"<eos>\n<unk>\nthe\n\xc3\xa9\n", TEXT], text),
        Reader("download", read_answer, answers(), (DownloadError,)),
        Reader("manifest", read_package("manifest.json"), [package()["manifest.json"]], (RunError,)),
        Reader("part", read_package("part-0001"), [package()["part-0001"]], (RunError,)),
    ]
    return {reader.name: reader for reader in listed}


# Changing them

NUMBERS = [0, 1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**63, 2**64 - 1]
WORDS = (
    b"\0\0\0\0 \r\n \r\n\r\n \xff\xfe \xed\xa0\x80 nan 1e9 -1 None True |O8 <U8 <M8[s] >f8 0x10 "
    b"Content-Length: Transfer-Encoding:chunked Location: Content-Range: bytes ../ %00 "
    b"c_codecs\nencode\n cnumpy\ndtype\n cos\nsystem\n }( ]( \x85R tb \x93 \x8e \x95 descr shape (-1,)"
).split(b" ")


def new_piece(piece, other, draw):
    """What stands in the place of a piece of an input: changed, a number, a word, or from another."""
    cut = draw.randrange(len(other) + 1)
    order = draw.choice(("little", "big"))
    number = draw.choice(NUMBERS)
    choices = [
        lambda: bytes(byte ^ 1 << draw.randrange(8) for byte in piece[:1]) + piece[1:],
        lambda: draw.randbytes(len(piece)),
        lambda: b"",
        lambda: piece * draw.choice((2, 3, 100)),
        lambda: (number % 2**32).to_bytes(4, order),
        lambda: number.to_bytes(8, order),
        lambda: str(draw.choice((-1, 1)) * number).encode(),
        lambda: draw.choice(WORDS),
        lambda: other[cut : cut + draw.choice((4, 64, 1024))],
    ]
    return draw.choice(choices)()


def changed(content, others, draw):
    """An input, changed at up to eight places.

    Args:
        content: The valid input.
        others: Inputs that pieces are taken from.
        draw: A `random.Random`.
    """
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.choice((1, 1, 2, 4, 8, 64, 512)))
        new = new_piece(bytes(content[start:end]), draw.choice(others), draw)
        content[start : end if draw.random() < 0.7 else start] = new
        if draw.random() < 0.05:
            del content[draw.randrange(len(content) + 1) :]
    return bytes(content[:LARGEST_INPUT])


# Counting


class Tally:
    """What became of the inputs of one reader, each of which is given time and memory."""

    def __init__(self, reader, longest, most_memory):
        self.reader = reader
        self.longest, self.most_memory = longest, most_memory
        self.counts = collections.Counter()
        self.findings = []
        self.slowest = self.memory = 0.0
        self._folder = tempfile.TemporaryDirectory()

    def feed(self, content):
        """Reads one input, counts how it ended and keeps it if it should not have ended so."""
        before, start = peak_memory(), time.perf_counter()
        signal.signal(signal.SIGALRM, overdue)
        signal.setitimer(signal.ITIMER_REAL, self.longest)
        try:
            outcome = self._outcome(content, pathlib.Path(self._folder.name))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        seconds, memory = time.perf_counter() - start, peak_memory() - before
        self.slowest = max(self.slowest, seconds)
        self.memory = max(self.memory, memory)
        if seconds > self.longest:
            outcome = f"overdue: {seconds:.1f} s"
        elif memory > self.most_memory:
            outcome = f"memory: {memory:.0f} MB"
        self.counts["inputs"] += 1
        self.counts[outcome if outcome in ("read", "refused") else "undocumented"] += 1
        if outcome not in ("read", "refused") and len(self.findings) < KEPT:
            self.findings.append({"outcome": outcome, "input": content.hex()})

    def _outcome(self, content, folder):
        try:
            self.reader.read(content, folder)
        except Overdue:
            return "overdue"
        except Exception as error:
            message = str(error)
            if type(error) not in self.reader.documented:
                return f"{type(error).__name__}: {message[:200]}"
            if "\n" in message or not message.isprintable() or not 10 < len(message) < LONGEST_MESSAGE:
                return f"{type(error).__name__} with a message that is no sentence: {message[:200]!r}"
            return "refused"
        return "read"

    def summary(self):
        return {
            **{name: self.counts[name] for name in ("inputs", "read", "refused", "undocumented")},
            "slowest_seconds": round(self.slowest, 3),
            "largest_growth_mb": round(self.memory, 1),
            "findings": self.findings,
        }


def peak_memory():
    """Megabytes that this process had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def overdue(*_):
    raise Overdue


def write_json(path, result):
    if path is not None:
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)


def mutate(tally, inputs, seconds, seed):
    """Feeds changed seeds until a number of inputs or a time is reached."""
    draw = random.Random(f"{seed} {tally.reader.name}")
    seeds = tally.reader.seeds
    for valid in seeds:
        tally.feed(valid)
    end = time.monotonic() + seconds
    while tally.counts["inputs"] < inputs and time.monotonic() < end:
        tally.feed(changed(draw.choice(seeds), seeds, draw))


def follow(tally, seconds, result, path):
    """Lets libFuzzer feed a reader; it ends the process."""
    folder = tempfile.mkdtemp()
    for index, seed in enumerate(tally.reader.seeds):
        pathlib.Path(folder, str(index)).write_bytes(seed)
    start = time.monotonic()
    written = [start]

    def record():
        result["seconds"] = round(time.monotonic() - start)
        result["readers"][tally.reader.name] = tally.summary()
        write_json(path, result)

    def feed(content):
        tally.feed(content)
        if time.monotonic() > written[0] + 10:
            written[0] = time.monotonic()
            record()

    atexit.register(record)
    options = [f"-max_total_time={seconds:.0f}", f"-max_len={LARGEST_INPUT}", "-timeout=60", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, folder], feed)
    atheris.Fuzz()


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = readers()
    parser.add_argument("--readers", default=",".join(known), help="names, separated by commas")
    parser.add_argument("--inputs", type=int, default=None, help="inputs of each reader; default: 2,000")
    parser.add_argument("--seconds", type=float, default=None, help="instead: seconds for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="let libFuzzer choose; one reader")
    parser.add_argument("--longest", type=float, default=5.0, help="seconds for one input")
    parser.add_argument("--most_memory", type=float, default=100.0, help="megabytes for one input")
    parser.add_argument("--json", type=pathlib.Path, default=None, help="file for the counts")
    options = parser.parse_args(arguments)

    absl.logging.set_verbosity(absl.logging.ERROR)
    result = {"seed": options.seed, "atheris": options.atheris, "readers": {}}
    start = time.monotonic()
    for name in options.readers.split(","):
        tally = Tally(known[name], options.longest, options.most_memory)
        if options.atheris:
            follow(tally, options.seconds or 60, result, options.json)
        inputs = options.inputs or (2000 if options.seconds is None else sys.maxsize)
        mutate(tally, inputs, options.seconds or sys.maxsize, options.seed)
        result["seconds"] = round(time.monotonic() - start, 1)
        result["readers"][name] = tally.summary()
        write_json(options.json, result)
        print(name, {**tally.summary(), "findings": [finding["outcome"] for finding in tally.findings]})
    return int(any(reader["undocumented"] for reader in result["readers"].values()))


if __name__ == "__main__":
    sys.exit(main())
