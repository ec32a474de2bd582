"""The way from a layer of this package to the plain Keras layer that serves in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_selfish.typing import Config

if TYPE_CHECKING:
    import keras
    from keras import Layer as _Base  # of the layer that it is placed before
else:
    _Base = object


class PlainForm(_Base):
    """Mixin, placed before a Keras layer class, of layers that a stripped model holds in another form.

    Subclasses name `keras_layer`, the Keras class that infers the same from the same weights,
    `further_arguments`, those of their own arguments that it does not take, and `shared_layers`, those that
    are layers of the same model and are shared in its copy as well.
    """

    keras_layer: type[keras.Layer] | None = None
    further_arguments: tuple[str, ...] = ()
    shared_layers: tuple[str, ...] = ()

    def get_config(self) -> Config:
        return {**super().get_config(), **{name: getattr(self, name) for name in self.further_arguments}}

    @classmethod
    def plain_form(cls, config: Config) -> tuple[type[keras.Layer], Config] | None:
        """What becomes of a layer of this class when a model is stripped.

        Args:
            config: What `get_config` returned.

        Returns:
            A layer class and its config; None where the class does not name its own `keras_layer` (a subclass
            may compute something else than the class it derives from).
        """
        keras_layer = cls.__dict__.get("keras_layer")
        if keras_layer is None:
            return None
        config = {key: value for key, value in config.items() if key not in cls.further_arguments}
        return keras_layer, config
