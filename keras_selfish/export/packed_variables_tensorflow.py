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

from keras_selfish.export.packed_matrix import is_worth_packing, pack
from keras_selfish.ordering import after

# The bits of each byte, the highest one first.
BITS = np.unpackbits(np.arange(256, dtype="uint8")[:, None], axis=1).astype(bool)
# Any damage to a file changes its fingerprint, but for one case in this many.
FINGERPRINTS = 2**62
DTYPES = {"float32": tf.float32, "bfloat16": tf.bfloat16, "int8": tf.int8}


class PackedVariables:
    """The packed forms of those variables of a model that are sparse enough to gain from it.

    Args:
        model: A Functional or Sequential model without masks.
        form: What the values become: one of `packed_matrix.FORMS`.
        folder: Folder for their files, which must stay until the SavedModel is written.

    Raises:
        ValueError: if no variable is sparse enough, or a value is not finite and `form` is `"int8"`.
    """

    def __init__(self, model, form, folder):
        variables = {id(variable): variable for variable in model.variables}.values()
        self.variables, self.others, files = [], [], []
        for variable in variables:
            matrix = _matrix(variable)
            if matrix is None or not is_worth_packing(matrix):
                self.others.append(variable)
                continue
            self.variables.append(variable)
            name = re.sub(r"\W+", "_", variable.path)
            file = pathlib.Path(folder, f"{name}_{len(files)}.packed")
            files.append(PackedFile(variable.shape, pack(matrix, form), file))
        if not files:
            raise ValueError(
                "`packed` needs a model with sparse weights large enough to gain from it. Received: "
                f"packed={form!r} and model {model.name!r}, which has none; leave `packed` out"
            )
        self.resource = ExpandedValues(files)  # to be tracked by what is saved

    @contextlib.contextmanager
    def in_use(self, values=None):
        """Within it, in a function that is to be saved, the model has the packed variables.

        Args:
            values: What `resource.read()` gave, if that was not in this function.
        """
        values = zip(self.variables, self.resource.read() if values is None else values, strict=True)
        with keras.StatelessScope(state_mapping=list(values)) as scope:
            yield
        for variable in self.others:  # such as the states of random generators
            if (value := scope.get_current_value(variable)) is not None:
                variable.assign(value)

    def specs(self):
        """The `tf.TensorSpec` of each packed variable."""
        return [tf.TensorSpec(variable.shape, tf.float32) for variable in self.variables]


class ExpandedValues(tf.saved_model.experimental.TrackableResource, tf.Module):
    """The values of packed variables, which whatever loads a SavedModel makes and fills once.

    It is one resource, a variable that holds a list of tensors: TensorFlow's loader calls functions for
    each resource, which takes longer than to expand a matrix. It is a module as well, since a resource alone
    does not track its attributes, and an asset that is not tracked is left behind.

    Args:
        files: The `PackedFile` of each variable.
    """

    def __init__(self, files):
        super().__init__()
        self.files, self.shared_name = tuple(files), f"packed_{uuid.uuid4().hex}"
        self.assets = [file.asset for file in files]

    def read(self):
        """The values, a list of tensors, in a function that is to be saved."""
        every = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=tf.variant)
        return [
            tf.ensure_shape(
                tf.raw_ops.TensorListGetItem(
                    input_handle=every, index=index, element_shape=file.shape, element_dtype=tf.float32
                ),
                file.shape,
            )
            for index, file in enumerate(self.files)
        ]

    def _create_resource(self):
        # `tf.saved_model.load` adds to the name, so that objects loaded from one SavedModel share nothing.
        return tf.raw_ops.VarHandleOp(dtype=tf.variant, shape=[], shared_name=self.shared_name)

    def _initialize(self):
        every = tf.raw_ops.TensorListReserve(
            element_shape=-1, num_elements=len(self.files), element_dtype=tf.float32
        )
        for index, file in enumerate(self.files):
            with tf.device("CPU:0"):  # a GPU has no faster way to do it, and no room to spare
                value = file.expanded()
            every = tf.raw_ops.TensorListSetItem(input_handle=every, index=index, item=value)
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=every)

    def _destroy_resource(self):
        tf.raw_ops.DestroyResourceOp(resource=self.resource_handle, ignore_lookup_error=True)


class PackedFile:
    """A file with a packed matrix, which goes into the SavedModel, and the operations that expand it.

    Args:
        shape: Shape of the variable.
        packed: Its `PackedMatrix`: all axes but the last are rows.
        path: Where to write the file.
    """

    def __init__(self, shape, packed, path):
        content = packed.to_bytes()
        path.write_bytes(content)
        self.shape, self.packed, self.size = tuple(shape), packed, len(content)
        self.fingerprint = tf.strings.to_hash_bucket_fast(content, FINGERPRINTS).numpy()
        self.asset = tf.saved_model.Asset(str(path))

    def expanded(self):
        """The value of the variable, computed from the file where the SavedModel is."""
        packed = self.packed
        (rows, columns), (block_rows, block_columns) = packed.shape, packed.block_shape
        values, scales, mask = self._parts()
        bits = tf.reshape(tf.gather(BITS, tf.cast(mask, tf.int32)), [-1])
        if packed.block_shape != (1, 1):
            grid = (rows // block_rows, 1, columns // block_columns, 1)
            blocks = tf.reshape(bits[: math.prod(grid)], grid)
            blocks = tf.broadcast_to(blocks, (grid[0], block_rows, grid[2], block_columns))
            bits = tf.reshape(blocks, [-1])
        # Of all ways that TensorFlow has, the fastest at any density. Bits that fill the last byte are 0.
        value = tf.raw_ops.SparseToDense(
            sparse_indices=tf.where(bits),
            output_shape=tf.constant([rows * columns], tf.int64),
            sparse_values=values,
            default_value=tf.zeros((), values.dtype),
            validate_indices=False,
        )
        if scales is not None:
            value = tf.reshape(tf.cast(value, tf.float32), packed.shape) * scales
        return tf.cast(tf.reshape(value, self.shape), tf.float32)

    def _parts(self):
        """The values, scales (None if there are none) and mask, read from the file."""
        content = tf.io.read_file(self.asset.asset_path)
        fingerprint = tf.strings.to_hash_bucket_fast(content, FINGERPRINTS)
        message = f"This file of the SavedModel, of {self.size} bytes, is damaged; copy or export it anew:"
        # `tf.debugging.Assert` would add two functions, which take longer to load than this to run.
        check = tf.raw_ops.Assert(
            condition=tf.equal(fingerprint, self.fingerprint),
            data=[message, self.asset.asset_path, "Received:", tf.strings.length(content), "bytes"],
        )
        content = after(content, check)
        start, parts = 0, []
        for array, dtype in (
            (self.packed.values, DTYPES[self.packed.form]),
            (self.packed.scales, tf.float32),
            (self.packed.mask, tf.uint8),
        ):
            if array is None:
                parts.append(None)
                continue
            place = tf.constant(start, tf.int64), tf.constant(array.nbytes, tf.int64)
            part = tf.io.decode_raw(tf.strings.substr(content, *place), dtype)
            parts.append(tf.reshape(part, array.shape) if array.ndim > 1 else part)
            start += array.nbytes
        return parts


def _matrix(variable):
    if variable.dtype != "float32" or len(variable.shape) < 2:
        return None
    return keras.ops.convert_to_numpy(variable).reshape(-1, variable.shape[-1])
