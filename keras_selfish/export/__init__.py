"""From a trained sparse model to something that serves without this package."""

# Imported at once: these names are modules, too, and whichever is bound last stays.
from keras_selfish._lazy import load_all
from keras_selfish.export.litert import litert
from keras_selfish.export.onnx import onnx
from keras_selfish.export.saved_model import saved_model, text_model
from keras_selfish.export.strip import strip

__all__ = ["litert", "onnx", "saved_model", "strip", "text_model"]

load_all(__name__)
