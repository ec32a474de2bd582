"""How the parts of a report name runs, each of which has a letter and a color, and their weights."""

from trainers.reporting.charts import COLORS
from trainers.reporting.markup import element


def letter_of(index):
    return chr(ord("A") + index)


def letter(index):
    return element("span", letter_of(index), class_=f"letter c{index % COLORS}")


def named(index, run):
    return element("span", letter(index), f" {run.label}")


def of_run(index, run, runs, content):
    """Content below the name of its run, where there are several."""
    return [element("h3", named(index, run)), *content] if len(runs) > 1 else content


def short_names(names):
    """Names of weights without the parts that are not needed to tell them apart, two parts at least.

    Of lstm_0_carried/lstm_0/lstm_cell/kernel, beside the same of another layer, lstm_0/kernel is left.

    Args:
        names: All of them, iterable several times.

    Returns:
        A dict from name to short name.
    """
    found = {}
    for name in names:
        parts, index = name.split("/"), 0
        others = [other.split("/") for other in names if other != name]
        while index < len(parts) - 1 and len(parts) > 2:
            shorter = parts[:index] + parts[index + 1 :]
            if any(_is_within(shorter, other) for other in others):
                index += 1
            else:
                parts = shorter
        found[name] = "/".join(parts)
    return found


def _is_within(parts, others):
    """Whether all parts are among others, in that order."""
    left = iter(others)
    return all(part in left for part in parts)
