"""What MkDocs builds beside the files of docs/: README.md as the first page, and the pages of the API.

MkDocs calls the functions whose names begin with `on_` (`hooks` in mkdocs.yml).
"""

import ast
import importlib
import pathlib
import posixpath
import re
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "keras_selfish"
# Modules whose names are for users, too, beside the packages.
MODULES = ("mask_spec", "masks", "typing", "rewiring.rules", "rewiring.schedules")


def documented():
    """The modules that have a page, as dotted names."""
    packages = sorted(file.parent.name for file in (REPOSITORY / PACKAGE).glob("*/__init__.py"))
    named = (name for name in (*packages, *MODULES) if "__all__" in source(f"{PACKAGE}.{name}"))
    return [f"{PACKAGE}.{name}" for name in named]


def source(module):
    """The text of a module of the repository."""
    path = REPOSITORY.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.read_text(encoding="utf-8")


def public_names(module):
    """The names in a module's `__all__`, each with where it is defined, a dict of dotted names."""
    origins = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(source(module)))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = importlib.import_module(module).__all__
    return {name: origins.get(name, f"{module}.{name}") for name in names}


def api_page(module):
    """The Markdown of a module's page."""
    tree = ast.parse(source(module))
    parts = [f"# {module}", ast.get_docstring(tree) or "", f"All names can be imported from `{module}`."]
    parts += [f"::: {origin}" for origin in public_names(module).values()]
    return "\n\n".join(parts) + "\n"


def api_pages():
    """All pages of the API, a dict from path in the site to Markdown."""
    return {f"api/{module}.md": api_page(module) for module in documented()}


def on_config(config):
    """Puts the pages of the API behind those that mkdocs.yml lists."""
    sys.path.insert(0, str(REPOSITORY))
    config.nav.append(
        {"API": [{module.removeprefix("keras_selfish."): f"api/{module}.md"} for module in documented()]}
    )
    return config


def on_files(files, config):
    """Adds the first page and those of the API."""
    from mkdocs.structure.files import File

    first = (REPOSITORY / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    for path, text in {"index.md": first, **api_pages()}.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leaves the text of links that lead out of the site, to files of the repository."""

    def resolved(match):
        text, link = match.groups()
        folder = posixpath.dirname(page.file.src_uri)
        file = files.get_file_from_path(posixpath.normpath(posixpath.join(folder, link.partition("#")[0])))
        inside = link.startswith(("#", "http")) or (file is not None and file.inclusion.is_included())
        return match[0] if inside else text

    return re.sub(r"(?<!!)\[([^]]*)\]\(([^)\s]+)\)", resolved, markdown)
