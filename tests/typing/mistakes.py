"""Mistakes that a type checker finds by the annotations of the package; it is checked, and never runs.

The comment of a line is the code of the error that mypy is to report there.
"""

import keras_selfish
from keras_selfish import (
    SNTASGD,
    LanguageModel,
    MaskSpec,
    NonMonotonicAveraging,
    RigL,
    SelfishRewiring,
    SparseConv2D,
    SparseDense,
    SparseEmbedding,
    SparseGRU,
    SparseLSTM,
    SparseMultiHeadAttention,
    SparseONLSTM,
    SparseRHN,
    SwitchedDense,
    SwitchedModel,
    language_model,
    masked_weights,
    sparsify,
)
from keras_selfish.analysis import plot_history, report
from keras_selfish.export import litert, saved_model, strip
from keras_selfish.layers import sparse_form_of
from keras_selfish.masks import active_counts, random_mask
from keras_selfish.rewiring import GMP, METHODS
from keras_selfish.switcher import SwitcherNetwork

keras_selfish.SparseLTSM(8)  # attr-defined
SparseLSTM(8, sparsty=0.5)  # call-arg
SparseLSTM("8")  # arg-type
SparseLSTM(8, sparsity="high")  # arg-type
SparseLSTM(8, distribution="erdös_renyi")  # arg-type
SparseLSTM(8, block_shape=4)  # arg-type
SparseLSTM(8, n_of_m=(2, 4, 8))  # arg-type
SparseLSTM(8, return_sequence=True)  # call-arg
SparseGRU(8, unit_forget_bias=True)  # call-arg
SparseRHN(8, depth="10")  # arg-type
SparseONLSTM(8, chunk=4)  # call-arg
SparseDense(8, units_drop=0.5)  # call-arg
SparseDense()  # call-arg
SparseConv2D(8)  # call-arg
SparseConv2D(8, 3, mask_seed="seed")  # arg-type
SparseEmbedding(100, 8, embeding_dropout=0.5)  # call-arg
SparseMultiHeadAttention(2, 4, block_shape="4x1")  # arg-type
SwitchedDense(8, granularity="unit")  # arg-type
MaskSpec(0.5, seed=1)  # call-arg
MaskSpec(distribution="even")  # arg-type
sparse_form_of("Dense")  # arg-type
SelfishRewiring(pruning_rate="0.5")  # arg-type
SelfishRewiring(schedule="cosinus")  # arg-type
SelfishRewiring(frequency="step")  # arg-type
SelfishRewiring(grow=3)  # arg-type
RigL(gradients=[])  # call-arg
GMP(schedule=0.5)  # arg-type
SNTASGD(lr=40.0)  # call-arg
SNTASGD(clip_norm_of="all")  # arg-type
NonMonotonicAveraging(patience=0.5)  # arg-type
LanguageModel(100, kernel_limit="gru")  # arg-type
LanguageModel(100, unit=8)  # call-arg
language_model(7)  # arg-type
language_model("quick", vocab_size=100)  # call-arg
sparsify()  # call-overload
sparsify(None, sparsity=0.5, initial="largest")  # call-overload
report()  # call-arg
plot_history("history.csv", 3)  # arg-type
strip(None, path="model")  # call-arg
litert(None, "model.tflite", quantize="int4")  # arg-type
saved_model(None, "model", vocabulary=7)  # arg-type
random_mask((4, 4), active="half", seed=0)  # arg-type
active_counts([(4, 4)], sparsity=0.5, distribution="even")  # arg-type
SwitchedModel(None, target_sparsity=0.9, steps=3)  # call-arg
SwitcherNetwork(architecture="transformer")  # arg-type
print(masked_weights(None)[0].density)  # attr-defined
print(METHODS["selfish"].callbacks)  # attr-defined
