"""Tells how far apart the connectivities of runs are: two or more with each other, or one from its beginning.

Of a single folder the last masks are compared with the first ones. A file of masks may stand in place of a
folder: a copy of masks-last.npz, which a run writes after every epoch, is how two epochs are compared.

Example:
    python -m trainers.topology --workdir runs/seed_1 --workdir runs/seed_2 --output topology.csv
"""

import csv
import itertools
import pathlib

from absl import flags, logging

from keras_selfish.analysis import topology_distance
from keras_selfish.analysis.tables import align
from keras_selfish.analysis.topology import MATCHES
from trainers import program, records
from trainers.files import RunError, replace, user_path
from trainers.reporting.run import label_runs, read_run

FLAGS = flags.FLAGS
MOST_RUNS = 16
COLUMNS = ("first", "second", "layer", "units", "distance", "in_place")

flags.DEFINE_multi_string(
    "workdir", None, "Folder of a run, or a file of masks; several are compared in pairs.", required=True
)
flags.DEFINE_bool("first", False, "Whether to compare the masks that the runs began with, not the last ones.")
flags.DEFINE_enum(
    "match", "hidden", MATCHES, "Units to match: of hidden layers, of all layers, or none, as in one run."
)
flags.DEFINE_string("output", None, "CSV file to write.")


def topology():
    """Prints the distances of the flags and returns them, a list of dicts."""
    output = program.file_to_write("output") if FLAGS.output else None
    networks = read_networks([user_path("--workdir", one) for one in FLAGS.workdir])
    rows = []
    for (first, masks), (second, others) in itertools.combinations(networks, 2):
        found = rows_of(masks, others)
        print(f"{first} and {second}\n{table(found)}\n")
        rows += [{"first": first, "second": second, **row} for row in found]
    if output is not None:
        replace(output, lambda temporary: write(temporary, rows))
        logging.info("Wrote %s", output)
    return rows


def read_networks(paths):
    """What is to be compared, a list of pairs of a name and masks as `topology_distance` takes them."""
    if len(paths) > MOST_RUNS:
        raise RunError(f"--workdir must be given up to {MOST_RUNS} times. Received: {len(paths)} folders")
    if len(paths) == 1 and (FLAGS.first or not paths[0].is_dir()):
        raise RunError(
            "--workdir must be given twice, or once for a folder, whose first and last masks are compared. "
            f"Received: --workdir={paths[0]}{' --first' if FLAGS.first else ''}"
        )
    folders = [path for path in paths if not path.is_file()]
    runs = [read_run(path) for path in folders]
    label_runs(runs)
    by_path = dict(zip(folders, runs, strict=True))
    if len(paths) == 1:
        return [network_of(runs[0], first) for first in (True, False)]
    return [
        network_of(by_path[path], FLAGS.first) if path in by_path else network_of_file(path) for path in paths
    ]


def network_of(run, first):
    """The name and the masks of a run, those that it began with (`first`) or the last ones."""
    masks = run.first if first else run.last
    if masks is None:
        raise RunError(f"--workdir must have masks. Received: --workdir={run.path}; {' '.join(run.missing)}")
    return f"{run.label} {masks.when}", {name: one.parts() for name, one in masks.weights.items()}


def network_of_file(path):
    """The same of a file of masks."""
    epoch, masks = records.read_masks(path)
    return f"{path.name} (epoch {epoch})", {one.name: one.parts() for one in masks}


def rows_of(masks, others):
    """The distances of two networks: a dict for each layer, then one for the networks."""
    matched = topology_distance(masks, others, match=FLAGS.match)
    in_place = topology_distance(masks, others, match="none")
    rows = [
        {"layer": one.name, "units": one.units, "distance": one.distance, "in_place": other.distance}
        for one, other in zip(matched.layers, in_place.layers, strict=True)
    ]
    whole = {"layer": "network", "units": "", "distance": matched.distance, "in_place": in_place.distance}
    return [*rows, whole]


def table(rows):
    """Rows as text."""
    cells = [
        (row["layer"], str(row["units"]), f"{row['distance']:.4f}", f"{row['in_place']:.4f}") for row in rows
    ]
    return align([("layer", "units", "distance", "in place"), *cells])


def write(path, rows):
    with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


main = program.tool(topology)


def run():
    """Entry point."""
    program.run_tool(main)


if __name__ == "__main__":
    run()
