"""Makes the folder of a run from the parts that it was packed into, to go on with it on this machine.

All parts and the manifest must be in one folder. They are checked before anything is written, and each file
before it takes its place: it is what it was, bit for bit. The command that trained goes on with the new
folder, on the same data wherever they are.

Example:
    python -m trainers.unpack --input packed --workdir runs/ptb
"""

from absl import flags, logging

from trainers import program
from trainers.package import Package

FLAGS = flags.FLAGS

flags.DEFINE_string("input", None, "Folder of a package with all its parts.", required=True)
flags.DEFINE_string("workdir", None, "Folder to make; it must be free or empty.", required=True)


def unpack():
    """Unpacks the package of the flags and returns the folder of the run."""
    package, workdir = Package(program.path("input")), program.path("workdir")
    names = package.unpack(workdir)
    logging.info("Unpacked %d files, %.2f MB, to %s", len(names), package.size / 1e6, workdir)
    return workdir


main = program.tool(unpack)


def run():
    """Entry point."""
    program.run_tool(main)


if __name__ == "__main__":
    run()
