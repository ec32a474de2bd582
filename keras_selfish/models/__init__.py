"""Ready-made models and the settings they were published with."""

from typing import TYPE_CHECKING

from keras_selfish._lazy import lazy_attributes

if TYPE_CHECKING:
    # What editors and type checkers read of the names that load lazily.
    from keras_selfish.models.architecture import Architecture
    from keras_selfish.models.cross_entropy import TokenCrossEntropy
    from keras_selfish.models.image_classifiers import NETWORKS, image_classifier
    from keras_selfish.models.language_models import LanguageModel, language_model
    from keras_selfish.models.layout import layout_map
    from keras_selfish.models.memory import check_memory, training_bytes
    from keras_selfish.models.perplexity import Perplexity
    from keras_selfish.models.presets import PRESETS, preset, register_preset
    from keras_selfish.models.recurrent_layers import RECURRENT_LAYERS, register_recurrent_layer
    from keras_selfish.models.sizes import small_dense

__all__ = [
    "NETWORKS",
    "PRESETS",
    "RECURRENT_LAYERS",
    "Architecture",
    "LanguageModel",
    "Perplexity",
    "TokenCrossEntropy",
    "check_memory",
    "image_classifier",
    "language_model",
    "layout_map",
    "preset",
    "register_preset",
    "register_recurrent_layer",
    "small_dense",
    "training_bytes",
]

if not TYPE_CHECKING:  # to a type checker any name would be one of them
    __getattr__ = lazy_attributes(
        __name__,
        {
            "Architecture": "architecture",
            "LanguageModel": "language_models",
            "NETWORKS": "image_classifiers",
            "PRESETS": "presets",
            "Perplexity": "perplexity",
            "RECURRENT_LAYERS": "recurrent_layers",
            "TokenCrossEntropy": "cross_entropy",
            "check_memory": "memory",
            "image_classifier": "image_classifiers",
            "language_model": "language_models",
            "layout_map": "layout",
            "preset": "presets",
            "register_preset": "presets",
            "register_recurrent_layer": "recurrent_layers",
            "small_dense": "sizes",
            "training_bytes": "memory",
        },
    )
