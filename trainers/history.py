"""The history of a run: a row of numbers for each epoch, as CSV."""

import csv
import io


def to_csv(rows):
    """The text of history.csv; the columns are the keys of the first row.

    What later rows have besides, of a run that an earlier version began, is left out.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["epoch"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def from_csv(text):
    """The rows of `to_csv`, dicts of strings.

    Raises:
        ValueError: if there is anything but a header and a row of numbers for each of successive epochs.
    """
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    except csv.Error as error:
        raise ValueError(f"it is no CSV: {error}") from error
    except ValueError as error:
        raise ValueError("it is empty") from error
    if header[:1] != ["epoch"] or len(set(header)) < len(header):
        raise ValueError("its first line does not name the columns, epoch first")
    for index, line in enumerate(lines):
        if len(line) != len(header):
            raise ValueError(f"row {index + 1} has {len(line)} values in {len(header)} columns")
        for value in line:
            if value:  # what an epoch does not have is left out
                _check_number(value, index + 1)
        # Not from 1 where an earlier version went on without its history.
        if not line[0].isdecimal() or int(line[0]) != int(lines[0][0]) + index:
            raise ValueError(f"row {index + 1} is of epoch {line[0]!r}")
    return [dict(zip(header, line, strict=True)) for line in lines]


def _check_number(value, row):
    try:
        float(value)
    except ValueError:
        raise ValueError(f"row {row} has {value[:20]!r} for a number") from None
