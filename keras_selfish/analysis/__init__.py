"""Reports on sparse models and plots of their training."""

# Imported at once: `report` names a module too, and whichever is bound last stays.
from keras_selfish.analysis.flops import Comparison, inference_flops, training_flops
from keras_selfish.analysis.plots import plot_history
from keras_selfish.analysis.report import Report, WeightReport, report

__all__ = [
    "Comparison",
    "Report",
    "WeightReport",
    "inference_flops",
    "plot_history",
    "report",
    "training_flops",
]
