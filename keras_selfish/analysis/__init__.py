"""Reports on sparse models, how far apart two of them are, and plots of their training."""

from typing import TYPE_CHECKING

from keras_selfish._lazy import lazy_attributes

if TYPE_CHECKING:
    # What editors and type checkers read of the names that load lazily; `as` exports them.
    from keras_selfish.analysis.flops import Comparison as Comparison
    from keras_selfish.analysis.flops import inference_flops as inference_flops
    from keras_selfish.analysis.flops import training_flops as training_flops
    from keras_selfish.analysis.plots import plot_history as plot_history
    from keras_selfish.analysis.reports import Report as Report
    from keras_selfish.analysis.reports import WeightReport as WeightReport
    from keras_selfish.analysis.reports import report as report
    from keras_selfish.analysis.topology import LayerDistance as LayerDistance
    from keras_selfish.analysis.topology import TopologyDistance as TopologyDistance
    from keras_selfish.analysis.topology import topology_distance as topology_distance

_SOURCES = {
    "Comparison": "flops",
    "LayerDistance": "topology",
    "Report": "reports",
    "TopologyDistance": "topology",
    "WeightReport": "reports",
    "inference_flops": "flops",
    "plot_history": "plots",
    "report": "reports",
    "topology_distance": "topology",
    "training_flops": "flops",
}

__all__ = sorted(_SOURCES)

if not TYPE_CHECKING:  # to a type checker any name would be one of them
    __getattr__ = lazy_attributes(__name__, _SOURCES)
