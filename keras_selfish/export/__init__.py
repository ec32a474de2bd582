"""From a trained sparse model to something that serves without this package."""

from keras_selfish.export.strip import strip

__all__ = ["strip"]
