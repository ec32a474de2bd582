"""The history of a run: a row of numbers for each epoch, as CSV."""

import csv
import io


def to_csv(rows):
    """The text of history.csv; the columns are the keys of the first row."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["epoch"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def from_csv(text):
    """The rows of `to_csv`, dicts of strings.

    Raises:
        ValueError: if there is anything but a header and a row of numbers for each epoch from 1 on.
    """
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    except csv.Error as error:
        raise ValueError(f"it is no CSV: {error}") from error
    except ValueError as error:
        raise ValueError("it is empty") from error
    if header[:1] != ["epoch"] or len(set(header)) < len(header):
        raise ValueError("its first line does not name the columns, epoch first")
    for epoch, line in enumerate(lines, 1):
        if len(line) != len(header):
            raise ValueError(f"row {epoch} has {len(line)} values in {len(header)} columns")
        if line[0] != str(epoch):
            raise ValueError(f"row {epoch} is of epoch {line[0]!r}")
        for value in line:
            if value:  # what an epoch does not have is left out
                _check_number(value, epoch)
    return [dict(zip(header, line, strict=True)) for line in lines]


def _check_number(value, epoch):
    try:
        float(value)
    except ValueError:
        raise ValueError(f"row {epoch} has {value[:20]!r} for a number") from None
