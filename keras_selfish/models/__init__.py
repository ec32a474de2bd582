"""Ready-made models and the settings they were published with."""

from keras_selfish._lazy import lazy_attributes

__all__ = [
    "NETWORKS",
    "PRESETS",
    "LanguageModel",
    "Perplexity",
    "TokenCrossEntropy",
    "image_classifier",
    "language_model",
    "preset",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "LanguageModel": "language_models",
        "NETWORKS": "image_classifiers",
        "PRESETS": "presets",
        "Perplexity": "perplexity",
        "TokenCrossEntropy": "cross_entropy",
        "image_classifier": "image_classifiers",
        "language_model": "language_models",
        "preset": "presets",
    },
)
