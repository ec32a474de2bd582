"""Ready-made models and the settings they were published with."""

from keras_selfish._lazy import lazy_attributes

__all__ = [
    "NETWORKS",
    "PRESETS",
    "Architecture",
    "LanguageModel",
    "Perplexity",
    "TokenCrossEntropy",
    "image_classifier",
    "language_model",
    "layout_map",
    "preset",
    "small_dense",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Architecture": "architecture",
        "LanguageModel": "language_models",
        "NETWORKS": "image_classifiers",
        "PRESETS": "presets",
        "Perplexity": "perplexity",
        "TokenCrossEntropy": "cross_entropy",
        "image_classifier": "image_classifiers",
        "language_model": "language_models",
        "layout_map": "layout",
        "preset": "presets",
        "small_dense": "sizes",
    },
)
