"""Makes docs/tutorial.ipynb of docs/tutorial.md: a cell for each piece of Python, and for the text between.

Usage: python -m tools.notebook [--check]

With --check nothing is written; the exit status is 1 if the notebook is not what would be.
"""

import argparse
import json
import pathlib
import re
import sys

DOCUMENT = pathlib.Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"


def notebook(text):
    """The notebook, as the text of a file, of a document in Markdown."""
    cells = []
    for index, part in enumerate(re.split(r"^```python\n(.*?)^```\n", text, flags=re.MULTILINE | re.DOTALL)):
        if not part.strip():
            continue
        cell = {"id": f"cell-{len(cells)}", "metadata": {}, "source": part.strip("\n").splitlines(True)}
        code = {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append({**(code if index % 2 else {"cell_type": "markdown"}), **cell})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    found = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    path = DOCUMENT.with_suffix(".ipynb")
    wanted = notebook(DOCUMENT.read_text(encoding="utf-8"))
    if not options.check:
        path.write_text(wanted, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != wanted:
        sys.exit(f"{path.name} is not made of {DOCUMENT.name}: run python -m tools.notebook")


if __name__ == "__main__":
    main()
