"""Packs a run into files of a limited size, to go on with it on another machine.

What a run needs to go on bit for bit, and its results so far, go into numbered parts, with a manifest of what
they hold. Nothing is rounded, and what is in several files of the run is stored once. The same run gives the
same parts again, so that they can be written a few at a time. TensorBoard's logs and exported models are left
out; the latter are exported again where the run goes on. trainers.unpack makes a folder of the run from them.

Example:
    python -m trainers.pack --workdir runs/ptb --output packed
    python -m trainers.pack --workdir runs/ptb --output packed --part_size 15 --parts 1-4
"""

import re

from absl import flags, logging

from trainers import program
from trainers.files import PARTIAL, RunError, read_json
from trainers.manifest import OTHER_NAMES
from trainers.package import write_package
from trainers.parts import SMALLEST_PART
from trainers.workdir import Workdir

FLAGS = flags.FLAGS
MIB = 1 << 20
LARGEST_PART = 1 << 20  # MiB

flags.DEFINE_string("workdir", None, "Folder of a run that no trainer uses.", required=True)
flags.DEFINE_string(
    "output", None, "Folder to write to; that of the same package is completed.", required=True
)
flags.DEFINE_float(
    "part_size",
    15.0,
    "Most MiB of a part.",
    lower_bound=SMALLEST_PART / MIB,
    upper_bound=LARGEST_PART,
)
flags.DEFINE_string(
    "parts", None, "Which parts to write, such as 1-4 or 2,5-7, as far as there are so many; by default all."
)


def pack():
    """Packs the run of the flags and returns the folder of the package."""
    is_wanted = wanted_parts(FLAGS.parts)
    path, output = program.path("workdir"), program.path("output")
    workdir = Workdir(path, kind_of(path))
    with workdir.open():
        workdir.settle_as_begun()
        checkpoint = workdir.checkpoint()
        if checkpoint is None:
            raise RunError(
                "--workdir must be the folder of a run with a checkpoint. "
                f"Received: --workdir={path}, which has none yet"
            )
        names = [checkpoint["weights"].name.removeprefix(PARTIAL), *OTHER_NAMES]
        files = {name: workdir.current(name) for name in names if workdir.current(name).is_file()}
        size = sum(file.stat().st_size for file in files.values())
        others = [path.name for path in path.iterdir() if path.name[0] != "." and path.name not in files]
        parts, written = write_package(files, output, int(FLAGS.part_size * MIB), is_wanted)
    logging.info(
        "Packed %.2f MB, the run after %s, into %.2f MB; wrote %d of %d parts to %s",
        *(size / 1e6, workdir.place, sum(part.size for part in parts) / 1e6, len(written), len(parts)),
        output,
    )
    if others:
        logging.info("Left out: %s", ", ".join(sorted(others)))
    return output


def kind_of(path):
    """What the run in a folder trains, as its settings say."""
    if not (path / "config.json").is_file():
        raise RunError(
            "--workdir must be the folder of a run. "
            f"Received: --workdir={path}, which {'has no config.json' if path.is_dir() else 'is no folder'}"
        )
    try:
        found = re.fullmatch(
            r"keras_selfish (.+) run, version \d+", str(read_json(path / "config.json")["format"])
        )
    except (ValueError, KeyError, OSError):
        found = None
    return found[1] if found else "unknown"  # of which `Workdir` tells what is wrong


def wanted_parts(text):
    """A function of a part's number: whether --parts names it."""
    if text is None:
        return lambda number: True
    ranges = []
    for item in text.split(","):
        found = re.fullmatch(r"\s*([1-9]\d{0,5})(?:-([1-9]\d{0,5}))?\s*", item)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise RunError(
                f"--parts must be numbers and ranges from 1 on, as in 2,5-7. Received: --parts={text}"
            )
        ranges.append(range(first, last + 1))
    return lambda number: any(number in one for one in ranges)


main = program.tool(pack)


def run():
    """Entry point."""
    program.run_tool(main)


if __name__ == "__main__":
    run()
