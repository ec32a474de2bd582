"""Ready-made models and the settings they were published with."""

from keras_selfish._lazy import lazy_attributes

__all__ = [
    "NETWORKS",
    "PRESETS",
    "Architecture",
    "LanguageModel",
    "Perplexity",
    "TokenCrossEntropy",
    "check_memory",
    "image_classifier",
    "language_model",
    "preset",
    "small_dense",
    "training_bytes",
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
        "check_memory": "memory",
        "image_classifier": "image_classifiers",
        "language_model": "language_models",
        "preset": "presets",
        "small_dense": "sizes",
        "training_bytes": "memory",
    },
)
