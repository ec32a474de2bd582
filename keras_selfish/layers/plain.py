"""The way from a layer of this package to the plain Keras layer that serves in its place."""


class PlainForm:
    """Mixin, placed before a Keras layer class, of layers that a stripped model holds in another form.

    Subclasses name `keras_layer`, the Keras class that infers the same from the same weights,
    `further_arguments`, those of their own arguments that it does not take, and `shared_layers`, those that
    are layers of the same model and are shared in its copy as well.
    """

    keras_layer = None
    further_arguments = ()
    shared_layers = ()

    def get_config(self):
        return {**super().get_config(), **{name: getattr(self, name) for name in self.further_arguments}}

    @classmethod
    def without_masks(cls, config):
        """What becomes of a layer of this class when a model is stripped.

        Args:
            config: What `get_config` returned.

        Returns:
            A layer class and its config; None where the class does not name its own `keras_layer` (a subclass
            may compute something else than the class it derives from).
        """
        if cls.__dict__.get("keras_layer") is None:
            return None
        config = {key: value for key, value in config.items() if key not in cls.further_arguments}
        return cls.keras_layer, config
