"""What the command lines of the benchmarks share."""

import argparse
import dataclasses
import pathlib

from benchmarks.task import Sizes


def bare_parser(description, rounds=3):
    """An `argparse.ArgumentParser` with `--rounds` and `--output`, for a benchmark with sizes of its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=positive, default=rounds, help=_with_default("how often each is measured")
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        metavar="FOLDER",
        help="write the figures there, as CSV and, with the extra `plot`, as PNG (default: nowhere)",
    )
    return parser


def make_parser(description, rounds=3, steps=None, **sizes):
    """An `argparse.ArgumentParser` with the options that all benchmarks have.

    Args:
        description: Docstring of the benchmark.
        rounds: Default number of rounds.
        steps: Default number of training steps of a round, of which the first two are not counted.
        **sizes: Defaults of sizes other than those of `Sizes`.
    """
    parser = bare_parser(description, rounds)
    defaults = Sizes(**sizes)
    for field in dataclasses.fields(Sizes):
        parser.add_argument(
            f"--{field.name}",
            type=positive,
            default=getattr(defaults, field.name),
            help=_with_default(field.metadata["help"]),
        )
    if steps is not None:
        parser.add_argument(
            "--steps",
            type=at_least_three,
            default=steps,
            help=_with_default(
                "training steps of a process; the first two compile and are not in the median"
            ),
        )
    return parser


def _with_default(text):
    return f"{text} (default: %(default)s)"


def parse(parser, arguments=None):
    """Parses the command line and makes the folder for output, before anything is measured."""
    options = parser.parse_args(arguments)
    if options.output is not None:
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(
                f"--output must be a folder that can be made. Received: {options.output} ({error.strerror})"
            )
    return options


def sizes_of(options):
    """The `Sizes` on a command line."""
    return Sizes(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Sizes)})


def positive(text, least=1):
    """A whole number over 0, as an argument's type."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}. Received: {text}")
    return number


def at_least_three(text):
    """A whole number of at least 3, as an argument's type."""
    return positive(text, least=3)


def fraction(text):
    """A number over 0 and under 1, as an argument's type."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < 1.0:
        raise argparse.ArgumentTypeError(f"must be a number in (0, 1). Received: {text}")
    return number


def fractions(text):
    """The type of an argument that lists numbers over 0 and under 1."""
    return [fraction(word) for word in text.split(",")]


def names_among(known):
    """The type of an argument that lists some of the known names, separated by commas."""

    def names(text):
        chosen = list(dict.fromkeys(text.split(",")))
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"must be some of {','.join(known)}, separated by commas. Received: {text}"
            )
        return chosen

    return names


def numbers(text):
    """The type of an argument that lists whole numbers over 0, separated by commas."""
    return sorted({positive(word) for word in text.split(",")})
