"""Names that load their module when they are first used.

Importing Keras chooses a backend and takes seconds; `import keras_selfish` on its own does neither.
"""

import importlib


def lazy_attributes(package, sources):
    """Makes a module-level `__getattr__` (PEP 562).

    Args:
        package: Name of the package whose names these are.
        sources: Dict from public name to the submodule that defines it.
    """

    def __getattr__(name):
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{sources[name]}")
        return getattr(module, name)

    return __getattr__
