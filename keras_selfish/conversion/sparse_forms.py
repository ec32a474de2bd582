"""Which sparse layer takes the place of which of Keras's, and which of its weights it masks."""

from keras_selfish import layers as sparse_layers
from keras_selfish.cloning import with_inner

SPARSE_CLASSES = {
    sparse_class.keras_layer: sparse_class
    for sparse_class in (
        sparse_layers.SparseConv1D,
        sparse_layers.SparseConv1DTranspose,
        sparse_layers.SparseConv2D,
        sparse_layers.SparseConv2DTranspose,
        sparse_layers.SparseConv3D,
        sparse_layers.SparseConv3DTranspose,
        sparse_layers.SparseDense,
        sparse_layers.SparseDepthwiseConv1D,
        sparse_layers.SparseDepthwiseConv2D,
        sparse_layers.SparseEinsumDense,
        sparse_layers.SparseEmbedding,
        sparse_layers.SparseGRU,
        sparse_layers.SparseGRUCell,
        sparse_layers.SparseGroupQueryAttention,
        sparse_layers.SparseLSTM,
        sparse_layers.SparseLSTMCell,
        sparse_layers.SparseMultiHeadAttention,
        sparse_layers.SparseReversibleEmbedding,
        sparse_layers.SparseSeparableConv1D,
        sparse_layers.SparseSeparableConv2D,
        sparse_layers.SparseSimpleRNN,
        sparse_layers.SparseSimpleRNNCell,
    )
}
# By the names that configs have.
SPARSE_CLASSES_BY_NAME = {cls.__name__.removeprefix("Sparse"): cls for cls in SPARSE_CLASSES.values()}
# The variables that the sparse forms mask; what else these layers have stays dense.
MASKED_NAMES = {
    "depthwise_kernel",
    "embeddings",
    "kernel",
    "pointwise_kernel",
    "recurrent_kernel",
    "reverse_embeddings",
}


def masked_sources(layer):
    """The variables of a plain layer, and of what a wrapper runs, that its sparse form masks."""
    plain = [inner for inner in with_inner(layer) if type(inner) in SPARSE_CLASSES]
    every = {id(variable): variable for inner in plain for variable in inner.weights}
    return [variable for variable in every.values() if variable.name in MASKED_NAMES]
