"""Names that load their module when they are first used, or as soon as Keras is there.

Importing Keras chooses a backend and takes seconds; `import keras_selfish` on its own does neither. But
`keras.models.load_model` knows classes only once their modules are imported: where Keras is, all of them are.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any

_waiting: dict[str, Mapping[str, str]] = {}


def lazy_attributes(package: str, sources: Mapping[str, str]) -> Callable[[str], Any]:
    """Makes a module-level `__getattr__` (PEP 562).

    Args:
        package: Name of the package whose names these are.
        sources: Dict from public name to the submodule that defines it.
    """

    def __getattr__(name):
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{package}.{sources[name]}"), name)
        load_all()
        return found

    return __getattr__


def class_of(package: str, source: Any) -> Any:
    """What a table names: `"module:Class"` of a package, loaded when it is asked for, or the class itself."""
    if not isinstance(source, str):
        return source
    module, _, name = source.partition(":")
    return getattr(importlib.import_module(f"{package}.{module}"), name)


def load_with_keras(package: str, sources: Mapping[str, str]) -> None:
    """Loads all that a package names, now if Keras is imported already, else when it will be.

    Args:
        package: Name of the package.
        sources: As in `lazy_attributes`.
    """
    _waiting[package] = sources
    if "keras" in sys.modules:
        load_all()
    else:
        sys.meta_path.insert(0, _AfterKeras(load_all))


def load_all(importer: str | None = None) -> None:
    """Loads what waits for Keras, if Keras is there and no module of these packages is half imported.

    Args:
        importer: Name of a module that calls this as the last thing that it does.
    """
    for package, sources in list(_waiting.items()):
        names = [name for name in list(sys.modules) if name.startswith(f"{package}.") and name != importer]
        if "keras" in sys.modules and not any(map(_is_being_imported, names)):
            del _waiting[package]
            for name, source in sources.items():
                getattr(importlib.import_module(f"{package}.{source}"), name)


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Finds nothing by itself, but has a function be called when Keras has been imported."""

    def __init__(self, function):
        self.function = function

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "keras" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)  # somebody may only want to know whether there is a Keras
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                sys.meta_path.remove(self)
                self.function()

            spec.loader.exec_module = exec_module
        return spec


def _is_being_imported(name):
    module = sys.modules.get(name)
    return getattr(getattr(module, "__spec__", None), "_initializing", False)
