"""The site has every public name, and is built without a warning."""

import html
import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
import zlib

import pytest

import keras_selfish
from tools import site_pages

EXTRA = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers")


def test_the_pages_name_all_that_the_packages_export():
    pages = site_pages.api_pages()
    packages = [
        f"keras_selfish.{one.name}" for one in pkgutil.iter_modules(keras_selfish.__path__) if one.ispkg
    ]
    described = set()
    for package in packages:
        exported = getattr(importlib.import_module(package), "__all__", None)
        page = pages.get(f"api/{package}.md", "")
        found = {origin.rpartition(".")[2] for origin in re.findall(r"^::: (.*)$", page, re.MULTILINE)}
        assert found == set(exported or ()), package
        described |= found
    for module in site_pages.MODULES:
        described |= set(importlib.import_module(f"keras_selfish.{module}").__all__)
    assert set(keras_selfish.__all__) - {"__version__"} <= described


def test_what_a_page_shows_is_where_the_page_says():
    for module in site_pages.documented():
        for name, origin in site_pages.public_names(module).items():
            place, _, inner = origin.rpartition(".")
            assert getattr(importlib.import_module(place), inner) is getattr(
                importlib.import_module(module), name
            )


def test_docstrings_are_read_as_they_are_meant():
    pytest.importorskip("griffe")
    from tools.site_docstrings import readable

    text = (
        "Adds.\n\nArgs: as in\n    `sum`.\n\nCall arguments:\n    x: A number.\n\nExample:\n\n>>> 1 + 1\n2\n"
    )
    assert readable(f"{text}\nReference: Peano.\n") == (
        "Adds.\n\n**Args:** as in\n`sum`.\n\nOther Parameters: Call arguments\n    x: A number.\n\n"
        "Examples:\n    >>> 1 + 1\n    2\n\n**Reference:** Peano.\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(not all(map(importlib.util.find_spec, EXTRA)), reason="needs pip install -e '.[docs]'")
def test_the_site_is_built_without_a_warning(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=site_pages.REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(site_pages.REPOSITORY), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    inventory = (tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]
    objects = {line.partition(" ")[0] for line in zlib.decompress(inventory).decode().splitlines()}
    for module in site_pages.documented():
        assert set(site_pages.public_names(module).values()) <= objects
        text = (tmp_path / "api" / module / "index.html").read_text(encoding="utf-8")
        prose = html.unescape(re.sub(r"<(pre|code).*?</\1>|<[^>]+>", "", text, flags=re.DOTALL))
        assert ">>>" not in prose, module  # examples are code
    assert "Two commands" in (tmp_path / "index.html").read_text(encoding="utf-8")
