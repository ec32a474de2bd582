"""Variables of a SavedModel that are packed on disk and expanded when it is loaded.

Imported only where Keras runs on TensorFlow.
"""

import contextlib
import math
import pathlib
import re
import uuid

import keras
import numpy as np
import tensorflow as tf

from keras_selfish.export.packing import is_worth_packing, pack

# The bits of each byte, the highest one first.
BITS = np.unpackbits(np.arange(256, dtype="uint8")[:, None], axis=1).astype(bool)
# Any damage to a file changes its fingerprint, but for one case in this many.
FINGERPRINTS = 2**62
DTYPES = {"float32": tf.float32, "bfloat16": tf.bfloat16, "int8": tf.int8}


class PackedVariable(tf.saved_model.experimental.TrackableResource):
    """What a variable of float32 becomes in a SavedModel: a file of its packed values, and a resource.

    `tf.saved_model.load` and the loaders of sessions make the resource, expand the file into it once, and
    give it to the functions that read it.

    Args:
        shape: Shape of the variable, rank at least 2.
        packed: Its `PackedMatrix`: all axes but the last are rows.
        file: Where to write the file, which `tf.saved_model.save` copies.
    """

    def __init__(self, shape, packed, file):
        super().__init__()
        content = packed.to_bytes()
        file.write_bytes(content)
        self.shape, self.packed, self.name = tuple(shape), packed, f"{file.stem}_{uuid.uuid4().hex}"
        self.size = len(content)
        self.fingerprint = tf.strings.to_hash_bucket_fast([content], FINGERPRINTS).numpy()[0]
        # A resource does not track its attributes, and an asset that is not tracked is left behind.
        self.file = self._track_trackable(tf.saved_model.Asset(str(file)), "file")

    def read(self):
        """The value, as a tensor, in a function that is to be saved."""
        value = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=tf.float32)
        return tf.ensure_shape(value, self.shape)

    def _create_resource(self):
        # `tf.saved_model.load` adds to the name, so that objects loaded from one SavedModel share nothing.
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=self.shape, shared_name=self.name)

    def _initialize(self):
        with tf.device("CPU:0"):  # a GPU has no faster way to do it, and no room to spare
            value = self._expanded()
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=value)

    def _destroy_resource(self):
        tf.raw_ops.DestroyResourceOp(resource=self.resource_handle, ignore_lookup_error=True)

    def _expanded(self):
        packed = self.packed
        (rows, columns), (block_rows, block_columns) = packed.shape, packed.block_shape
        values, scales, mask = self._parts()
        blocks = tf.reshape(tf.gather(tf.constant(BITS), tf.cast(mask, tf.int32)), [-1])
        grid = (rows // block_rows, 1, columns // block_columns, 1)
        blocks = tf.reshape(blocks[: math.prod(grid)], grid)
        is_kept = tf.broadcast_to(blocks, (grid[0], block_rows, grid[2], block_columns))
        # Of all ways that TensorFlow has, the fastest at any density.
        places = tf.where(tf.reshape(is_kept, [-1]))
        sparse = tf.SparseTensor(places, values, [rows * columns])
        matrix = tf.reshape(tf.sparse.to_dense(sparse, validate_indices=False), packed.shape)
        matrix = tf.cast(matrix, tf.float32)
        if scales is not None:
            matrix *= tf.reshape(scales, packed.scales.shape)
        return tf.reshape(matrix, self.shape)

    def _parts(self):
        """The values, scales (None if there are none) and mask, read from the file."""
        content = tf.io.read_file(self.file.asset_path)
        fingerprint = tf.strings.to_hash_bucket_fast([content], FINGERPRINTS)[0]
        message = f"This file of the SavedModel, of {self.size} bytes, is damaged; copy or export it anew:"
        received = [message, self.file.asset_path, "Received:", tf.strings.length(content), "bytes"]
        with tf.control_dependencies([tf.debugging.Assert(fingerprint == self.fingerprint, received)]):
            content = tf.identity(content)
        start = 0

        def part(array, dtype):
            nonlocal start
            place = tf.constant([start, array.nbytes], tf.int64)
            start += array.nbytes
            return tf.io.decode_raw(tf.strings.substr(content, place[0], place[1]), dtype)

        packed = self.packed
        values = part(packed.values, DTYPES[packed.form])
        scales = None if packed.scales is None else part(packed.scales, tf.float32)
        return values, scales, part(packed.mask, tf.uint8)


class PackedVariables:
    """The packed forms of those variables of a model that are sparse enough to gain from it.

    Args:
        model: A Functional or Sequential model without masks.
        form: What the values become: one of `packing.FORMS`.
        folder: Folder for their files, which must stay until the SavedModel is written.

    Raises:
        ValueError: if no variable is sparse enough, or a value is not finite and `form` is `"int8"`.
    """

    def __init__(self, model, form, folder):
        variables = {id(variable): variable for variable in model.variables}.values()
        self.packed, self.others = [], []
        for variable in variables:
            matrix = _matrix(variable)
            if matrix is None or not is_worth_packing(matrix):
                self.others.append(variable)
                continue
            name = re.sub(r"\W+", "_", variable.path)
            file = pathlib.Path(folder, f"{name}_{len(self.packed)}.packed")
            self.packed.append((variable, PackedVariable(variable.shape, pack(matrix, form), file)))
        if not self.packed:
            raise ValueError(
                "`packed` needs a model with sparse weights large enough to gain from it. Received: "
                f"packed={form!r} and model {model.name!r}, which has none; leave `packed` out"
            )
        self.resources = tf.Module()  # to be tracked by what is saved
        self.resources.packed = [packed for _, packed in self.packed]

    @contextlib.contextmanager
    def in_use(self):
        """Within it, in a function that is to be saved, the model reads the packed variables."""
        values = [(variable, packed.read()) for variable, packed in self.packed]
        with keras.StatelessScope(state_mapping=values) as scope:
            yield
        for variable in self.others:  # such as the states of random generators
            if (value := scope.get_current_value(variable)) is not None:
                variable.assign(value)


def _matrix(variable):
    if variable.dtype != "float32" or len(variable.shape) < 2:
        return None
    return keras.ops.convert_to_numpy(variable).reshape(-1, variable.shape[-1])
