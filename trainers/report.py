"""Writes a report of a run, or of several to compare, as one HTML file that needs nothing beside it.

It shows settings, results, curves, how gates and masks changed, and what the run ran with; of a run that goes
on, what there is so far.

Example:
    python -m trainers.report --workdir runs/ptb --workdir runs/ptb_blocks --output report.html
"""

from absl import flags, logging

from trainers import program
from trainers.files import RunError, replace, user_path
from trainers.reporting import page
from trainers.reporting.run import label_runs, read_run

FLAGS = flags.FLAGS
MOST_RUNS = 8

flags.DEFINE_multi_string(
    "workdir", None, "Folder of a run; given several times, runs are compared.", required=True
)
flags.DEFINE_string("output", None, "What to write, in place of report.html in the first --workdir.")
flags.DEFINE_bool(
    "masks",
    True,
    "Whether to show masks; those of runs of earlier versions are read from the model by Keras.",
)


def report():
    """Writes the report of the flags and returns its path."""
    paths = [user_path("--workdir", one) for one in FLAGS.workdir]
    resolved = [path.resolve() for path in paths]
    repeated = [path for path, place in zip(paths, resolved, strict=True) if resolved.count(place) > 1]
    if repeated or len(paths) > MOST_RUNS:
        raise RunError(
            f"--workdir must be given up to {MOST_RUNS} times, for different folders. "
            f"Received: {len(paths)} folders" + (f", {repeated[0]} more than once" if repeated else "")
        )
    output = program.file_to_write("output") if FLAGS.output else paths[0] / "report.html"
    runs = [read_run(path, FLAGS.masks) for path in paths]
    label_runs(runs)
    text = page.page(runs)
    replace(output, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    # A path may hold bytes that are no UTF-8, which a log cannot.
    shown = str(output).encode(errors="backslashreplace").decode()
    logging.info("Wrote %s, %.0f kB", shown, output.stat().st_size / 1e3)
    return output


main = program.tool(report)


def run():
    """Entry point."""
    program.run_tool(main)


if __name__ == "__main__":
    run()
