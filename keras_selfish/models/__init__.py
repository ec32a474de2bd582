"""Ready-made models and the settings they were published with."""

from keras_selfish._lazy import lazy_attributes

__all__ = [
    "PRESETS",
    "Architecture",
    "LanguageModel",
    "Perplexity",
    "TokenCrossEntropy",
    "language_model",
    "preset",
    "small_dense",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Architecture": "architecture",
        "LanguageModel": "language_models",
        "PRESETS": "presets",
        "Perplexity": "perplexity",
        "TokenCrossEntropy": "cross_entropy",
        "language_model": "language_models",
        "preset": "presets",
        "small_dense": "sizes",
    },
)
