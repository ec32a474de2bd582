"""Tables of a report, and how values read there."""

import json
import math

from trainers.reporting.charts import number
from trainers.reporting.markup import element


def table(caption, head, rows, tall=False, best=None, of_text=False):
    """A table that scrolls within itself where it is wider than the page.

    Args:
        caption: What it holds.
        head: Names of the columns.
        rows: Lists of cells, of which the first names the row; text and elements.
        tall: Whether it has so many rows that it scrolls downwards, too. Default False.
        best: Index of the row to mark, or None (default).
        of_text: Whether the other columns hold text, too, which stands to the left. Default False.
    """
    body, kind = [], "text" if of_text else None
    for index, (first, *rest) in enumerate(rows):
        mark = element("span", "best", class_="tag") if index == best else None
        cells = [element("th", first, mark, scope="row", class_="text")]
        cells += [element("td", cell, class_=kind) for cell in rest]
        body.append(element("tr", cells, class_="best" if index == best else None))
    columns = [element("th", head[0], scope="col", class_="text")]
    columns += [element("th", name, scope="col", class_=kind) for name in head[1:]]
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", columns)),
        element("tbody", body),
    )
    return element(
        "div",
        made,
        class_="scroll tall" if tall else "scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def percent(value, digits=3, aligned=False):
    """A fraction in percent; the rest as in `number`."""
    return f"{number(100 * value, digits, aligned)}%"


def duration(seconds):
    """A time as people say it."""
    if seconds < 90:
        return f"{number(seconds, 3)} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def size(count):
    """Bytes as people say them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{number(count / factor, 3)} {unit}"
    return f"{count} bytes"


def setting(name, value):
    """A setting as text; of folders, whose place is nobody's business, the last part."""
    if name == "data_dir" and isinstance(value, str):
        return "…/" + value.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if name == "data_sha256" and isinstance(value, dict):
        return ", ".join(f"{part} {str(digest)[:8]}" for part, digest in value.items())
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def figure(value):
    """A result as text."""
    return number(value, 5) if isinstance(value, (int, float)) else setting("", value)
