"""Private names of other packages: `keras_internals*.py` alone uses them, and they do what it says there."""

import ast
import configparser
import importlib
import inspect
import pathlib
import pkgutil
import re
import textwrap

import keras
import numpy as np
import pytest
from keras import ops

from keras_selfish import keras_internals as internals
from keras_selfish.layers import SparseDense
from keras_selfish.optimizers import SNTASGD

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("keras_selfish", "trainers")
every_backend = pytest.mark.backends("tensorflow", "jax")


def files():
    found = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
    return [path for path in found if not path.stem.startswith("keras_internals")]


# Each function, by what it is needed for


@every_backend
def test_layers_inside_layers():
    cells = [keras.layers.LSTMCell(2), keras.layers.GRUCell(3)]
    inner = keras.Sequential([keras.layers.Bidirectional(keras.layers.RNN(cells))])
    found = internals.inner_layers(keras.layers.TimeDistributed(inner))
    names = [type(layer).__name__ for layer in found]
    assert sorted(names) == sorted(
        ["Sequential", "Bidirectional", *["RNN", "StackedRNNCells", "LSTMCell", "GRUCell"] * 2]
    )


@every_backend
def test_a_layer_in_the_place_of_another_one():
    class Two(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.first, self.second = keras.layers.Dense(2), keras.layers.Dense(3)

        def call(self, x):
            return self.second(self.first(x))

    both, new = Two(), keras.layers.Dense(2, use_bias=False)
    both(np.ones((1, 4)))
    new.build((None, 4))
    internals.exchange_inner_layer(both, both.first, new)
    both.first = new
    assert internals.inner_layers(both) == [new, both.second]
    assert [tuple(weight.shape) for weight in both.weights] == [(4, 2), (2, 3), (3,)]


@every_backend
@pytest.mark.parametrize("name", ["mish", "hard_silu", "sparsemax", "relu"])
def test_activations_of_symbolic_tensors(name):
    """As operations, and of numbers what they are otherwise."""
    activation = keras.activations.get(name)
    numbers = np.linspace(-2, 2, 6, dtype="float32").reshape(2, 3)
    expected, x = np.asarray(activation(numbers)), keras.Input((3,))
    with internals.symbolic_operations():
        symbolic = activation(x)
        inside = np.asarray(activation(numbers))
    np.testing.assert_array_equal(inside, expected)
    np.testing.assert_allclose(keras.Function(x, symbolic)(numbers), expected, rtol=1e-6)
    np.testing.assert_array_equal(activation(numbers), expected)
    if name != "relu":
        with pytest.raises(ValueError, match="KerasTensor"):
            activation(keras.Input((3,)))


@every_backend
def test_batch_normalization_of_symbolic_tensors_with_an_offset_and_no_scale():
    layer = keras.layers.BatchNormalization(scale=False, beta_initializer="ones")
    layer.build((None, 3))
    numbers, x = np.ones((2, 3), "float32"), keras.Input((3,))
    with internals.symbolic_operations():
        symbolic = layer.call(x)
        with pytest.raises(ValueError, match="`scale` must be a vector"):
            ops.batch_normalization(x, np.zeros(3), np.ones(3), -1, np.zeros(3), np.ones(4))
    np.testing.assert_allclose(keras.Function(x, symbolic)(numbers), layer(numbers), rtol=1e-6)


@every_backend
def test_symbols_that_others_are_computed_from():
    x, y, unused = (keras.Input((3,)) for _ in range(3))
    between = keras.layers.Dense(2)(x)
    output = keras.layers.Add()([between, keras.layers.Dense(2)(y)])
    reached = internals.symbols_within([output])
    assert {id(one) for one in (x, y, between, output)} < reached
    assert id(unused) not in reached
    assert internals.symbols_within([]) == set()


@every_backend
def test_sizes_that_an_einsum_dense_leaves_open():
    """Those of its inputs are known where it runs on symbolic tensors, and only there."""
    layer = keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 4))
    elided = keras.layers.EinsumDense("...c,cd->...d", output_shape=4)
    with internals.symbolic_operations():
        assert layer(keras.Input((5, 3))).shape == (None, 5, 4)
        assert elided(keras.Input((3,))).shape == (None, 4)
    assert layer(keras.Input((5, 3))).shape == (None, None, 4)


@every_backend
def test_attention_with_more_arguments_than_its_base():
    class Cached(keras.layers.MultiHeadAttention):
        def call(self, query, value, key=None, cache=None):
            return super().call(query, value, key) if cache is None else cache

    layer, x = Cached(2, 3), keras.Input((5, 6))
    with internals.symbolic_operations():
        assert layer(x, x, cache=None).shape == (None, 5, 6)
        with pytest.raises(TypeError, match="cache"):
            layer(x, x, cache=x)
    with pytest.raises(TypeError, match="cache"):
        layer(x, x, cache=None)


@every_backend
def test_casts_of_symbolic_tensors_by_the_backend():
    from keras.src import backend

    cast, x = backend.cast, keras.Input((3,))
    with internals.symbolic_operations():
        symbolic = backend.cast(x, "int32")
        number = backend.cast(np.float32(2.5), "int32")
    assert (symbolic.dtype, int(number)) == ("int32", 2)
    np.testing.assert_array_equal(keras.Function(x, symbolic)(np.full((1, 3), 1.5, "float32")), [[1, 1, 1]])
    assert backend.cast is cast


@every_backend
def test_the_class_of_cells_whose_masks_are_drawn_once_per_sequence():
    class Recording(internals.DropoutRNNCell, keras.layers.Layer):
        state_size = 1

        def __init__(self):
            super().__init__()
            self.dropout, self.recurrent_dropout = 0.5, 0.0
            self.seed_generator = keras.random.SeedGenerator(0)

        def call(self, inputs, states, training=False):
            kept = inputs * self.get_dropout_mask(inputs)
            return kept, [ops.sum(kept, -1, keepdims=True)]

    layer = keras.layers.RNN(Recording(), return_sequences=True)
    kept = ops.convert_to_numpy(layer(np.ones((1, 6, 40), "float32"), training=True))[0] > 0
    assert 0 < kept[0].sum() < 40
    np.testing.assert_array_equal(kept, np.broadcast_to(kept[0], kept.shape))


@every_backend
def test_a_layer_becomes_a_part_of_a_functional_model():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    model.beside = keras.layers.Dense(2)
    model.beside.build((None, 5))
    internals.track_layer(model, model.beside)
    internals.track_layer(model, model.beside)
    assert [tuple(v.shape) for v in model.trainable_variables] == [(4, 3), (3,), (5, 2), (2,)]


@every_backend
def test_variables_of_a_frozen_layer():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3))
    layer.trainable = False
    assert layer.trainable_variables == []
    assert [v.name for v in internals.own_trainable_variables(layer)] == ["gamma", "beta"]


@every_backend
def test_calls_of_a_graph():
    shared = keras.layers.Dense(4, name="shared")
    first, second = keras.Input((4,)), keras.Input((4,))
    total = shared(first) + shared(shared(second))
    nodes = internals.graph_nodes(keras.Function([first, second], [total]))
    assert [node.operation.name for node in nodes[:3]] == ["shared"] * 3
    assert [type(node.operation).__name__ for node in nodes[3:]] == ["Add"]
    known = {id(first), id(second)}
    for node in nodes:
        assert {id(tensor) for tensor in node.input_tensors} <= known
        known |= {id(tensor) for tensor in node.output_tensors}
    assert id(total) in known
    arguments = nodes[3].arguments
    assert [id(one) for one in arguments.args] == [id(one) for one in nodes[3].input_tensors]
    assert arguments.kwargs == {}


@every_backend
def test_the_call_that_runs():
    seen = []

    class Inner(keras.layers.Layer):
        def call(self, inputs):
            seen.append(internals.current_call())
            return inputs

    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def call(self, inputs, training=False):
            seen.append(internals.current_call())
            return self.inner(inputs)

    layer = Outer()
    for training in (True, False):
        layer(np.ones((1, 2), "float32"), training=training)
        outer, inner = seen[-2:]
        assert inner is outer
        assert outer.training is training
    assert internals.current_call() is None


@every_backend
def test_a_mask_of_padding_reaches_the_next_layer():
    seen = []

    class Marks(keras.layers.Layer):
        def call(self, inputs):
            outputs = inputs * 2
            internals.set_padding_mask(outputs, ops.not_equal(inputs[..., 0], 0))
            return outputs

    class Sees(keras.layers.Layer):
        supports_masking = True

        def call(self, inputs, mask=None):
            seen.append(mask)
            return inputs

    values = np.array([[[1.0], [0.0]]], "float32")
    outputs = Sees()(Marks()(values))
    np.testing.assert_array_equal(ops.convert_to_numpy(seen[0]), [[True, False]])
    mask = internals.padding_mask_of(Marks()(values))
    np.testing.assert_array_equal(ops.convert_to_numpy(mask), [[True, False]])
    assert internals.padding_mask_of(ops.convert_to_tensor(values)) is None
    lstm = keras.layers.LSTM(2)
    expected = lstm(values * 2, mask=np.array([[True, False]]))
    np.testing.assert_array_equal(ops.convert_to_numpy(lstm(outputs)), ops.convert_to_numpy(expected))


@every_backend
def test_the_objects_of_a_scope():
    assert "mine" not in internals.scoped_objects()
    with keras.saving.custom_object_scope({"mine": keras.layers.Dense}):
        assert internals.scoped_objects()["mine"] is keras.layers.Dense
        with keras.saving.custom_object_scope({"others": keras.layers.Dense}):
            assert "mine" not in internals.scoped_objects()  # else no function would be needed
    assert "mine" not in internals.scoped_objects()


@every_backend
def test_a_raw_value_is_not_cast_and_not_of_a_scope():
    seen = []

    class Reads(keras.layers.Dense):
        def call(self, inputs):
            kernel = self.kernel
            seen.append((kernel.value, internals.raw_value(kernel)))
            return super().call(inputs)

    layer = Reads(2, dtype="mixed_bfloat16")
    layer(np.ones((1, 3), "float32"))
    (cast, raw) = seen[0]
    assert keras.backend.standardize_dtype(cast.dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(raw.dtype) == "float32"

    variable = keras.Variable(np.ones(2, "float32"))
    with keras.StatelessScope([(variable, ops.zeros(2))]):
        np.testing.assert_array_equal(ops.convert_to_numpy(internals.raw_value(variable)), 1)
    tensor = ops.ones(2)
    assert internals.raw_value(tensor) is tensor


@every_backend
def test_a_raw_write_passes_an_override():
    class Guarded(keras.Variable):
        def _direct_assign(self, value):
            internals.write_raw(self, value * 0)

    variable = keras.Variable(np.ones(2, "float32"))
    variable.__class__ = Guarded
    internals.write_raw(variable, ops.ones(2) * 3)
    np.testing.assert_array_equal(ops.convert_to_numpy(variable), 3)
    variable.assign([5.0, 5.0])
    np.testing.assert_array_equal(ops.convert_to_numpy(variable), 0)


@pytest.mark.backends("jax")
def test_the_layout_of_a_variable():
    mesh = keras.distribution.DeviceMesh((1,), ["model"], devices=["cpu:0"])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*kernel"] = (None, "model")
    assert internals.layout_of(keras.Variable(np.ones(2))) is None
    distribution = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="model")
    with distribution.scope():
        layer = keras.layers.Dense(2)
        layer.build((None, 3))
        copy = SNTASGD().add_variable((3, 2), layout=internals.layout_of(layer.kernel))
    assert internals.layout_of(layer.kernel) is not None
    assert internals.layout_of(copy) is internals.layout_of(layer.kernel)
    assert internals.layout_of(layer.bias) is not internals.layout_of(copy)


def test_variables_have_no_layout_here():
    assert internals.layout_of(keras.Variable(np.ones(2))) is None


@every_backend
def test_what_an_optimizer_trains():
    optimizer = keras.optimizers.Adam(weight_decay=0.1, gradient_accumulation_steps=2)
    assert len(internals.trained_variables(optimizer)) == 0
    variables = [keras.Variable(np.ones((2, k), "float32"), name=f"v{k}") for k in (1, 2)]
    optimizer.exclude_from_weight_decay(var_list=variables[:1])
    optimizer.build(variables)
    found = internals.trained_variables(optimizer)
    assert [id(one) for one in found] == [id(one) for one in variables]
    assert [internals.variable_index(optimizer, one) for one in variables] == [0, 1]
    with pytest.raises(KeyError):
        internals.variable_index(optimizer, keras.Variable(np.ones(2)))
    assert [bool(internals.decays(optimizer, one)) for one in variables] == [False, True]
    optimizer.apply([ops.ones((2, 1)), 3 * ops.ones((2, 2))])
    sums = internals.gradient_accumulators(optimizer)
    assert [float(ops.convert_to_numpy(one).mean()) for one in sums] == [1.0, 3.0]


def test_a_variable_of_several_replicas(two_replicas):
    """Its raw value has a part on each replica, by which it is found in an optimizer."""
    import tensorflow as tf

    with two_replicas.scope():
        variables = [keras.Variable(np.ones(k, "float32")) for k in (2, 3)]
        optimizer = keras.optimizers.SGD()
        optimizer.build(variables)
    raw = internals.raw_value(variables[1])
    assert isinstance(raw, tf.distribute.DistributedValues)
    assert len(raw.values) == 2
    assert [internals.variable_index(optimizer, part) for part in raw.values] == [1, 1]
    assert isinstance(internals.raw_value(keras.Variable(np.ones(2))), tf.Variable)


@pytest.mark.parametrize("replicas", [1, 2])
def test_one_call_for_all_replicas(replicas, two_replicas):
    import tensorflow as tf

    from keras_selfish.keras_internals_tensorflow import call_once_for_all_replicas

    strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
    calls = []
    with strategy.scope():
        variable = tf.Variable(1.0)

    def update(given, value):
        calls.append((given, tf.distribute.in_cross_replica_context()))
        given.extended.update(variable, lambda one, value: one.assign_add(value), args=(value,))

    @tf.function
    def step():
        strategy.run(lambda: call_once_for_all_replicas(update, tf.constant(2.0)))

    step()
    assert calls == [(strategy, replicas == 2)]
    assert float(tf.convert_to_tensor(variable)) == 3.0


# Overrides of private methods


def owner_of(override):
    module, _, name = override.owner.rpartition(".")
    return getattr(importlib.import_module(module), name)


def small_model(optimizer="sgd"):
    model = keras.Sequential([keras.Input((4,)), SparseDense(8, sparsity=0.5, name="sparse")])
    model.compile(optimizer, "mse")
    return model


def assign_anew(tmp_path):
    model = small_model()
    model.set_weights(model.get_weights())


def restore_a_checkpoint(tmp_path):
    import tensorflow as tf

    checkpoint = tf.train.Checkpoint(model=small_model())
    checkpoint.restore(checkpoint.save(str(tmp_path / "checkpoint"))).assert_consumed()


def fit(tmp_path):
    small_model(SNTASGD(0.1, weight_decay=0.1, global_clipnorm=1.0)).fit(np.eye(4), np.eye(4, 8), verbose=0)


def save_packed(tmp_path):
    from keras_selfish import export

    model = keras.Sequential([keras.Input((128,)), SparseDense(128, sparsity=0.9)])
    export.saved_model(model, tmp_path / "packed", packed="float32")


USES = {
    "_direct_assign": assign_anew,
    "_restore_from_tensors": restore_a_checkpoint,
    "_clip_gradients": fit,
    "_apply_weight_decay": fit,
    "_backend_update_step": fit,
    "_create_resource": save_packed,
    "_initialize": save_packed,
    "_destroy_resource": save_packed,
}


@pytest.mark.parametrize(
    "override", internals.OVERRIDES, ids=lambda one: f"{one.owner.split('.')[-1]}{one.method}"
)
def test_an_override_is_of_a_method_that_is_called(override, tmp_path, monkeypatch):
    owner = owner_of(override)
    assert override.method in vars(owner)
    parents = [one for one in owner.__mro__[1:] if one.__module__.split(".")[0] not in PACKAGES]
    assert any(override.method in vars(parent) for parent in parents)
    called, method = [], vars(owner)[override.method]

    def noted(self, *arguments):
        called.append(override.method)
        return method(self, *arguments)

    monkeypatch.setattr(owner, override.method, noted)
    USES[override.method](tmp_path)
    assert called


def our_classes():
    """The classes of the package that derive from a class of another package."""
    found = {}
    for package in PACKAGES:
        for module in pkgutil.walk_packages([str(REPOSITORY / package)], f"{package}."):
            # Programs cannot be imported together, since each defines flags. No class of theirs has parents.
            source = REPOSITORY / f"{module.name.replace('.', '/')}.py"
            if module.name.endswith(("_jax", "_torch")) or defines_flags(source):
                continue
            for name, value in vars(importlib.import_module(module.name)).items():
                if inspect.isclass(value) and value.__module__ == module.name:
                    found[f"{module.name}.{name}"] = value
    return found


def defines_flags(path):
    if not path.is_file() or "flags.DEFINE_" not in (text := path.read_text(encoding="utf-8")):
        return False
    assert not [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.bases]
    return True


def foreign_parents(owner):
    return [one for one in owner.__mro__ if one.__module__.split(".")[0] in ("keras", "tensorflow")]


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_every_override_of_a_private_name_is_listed():
    listed = {(override.owner, override.method) for override in internals.OVERRIDES}
    found, sources = set(), {}
    for owner, value in our_classes().items():
        parents = foreign_parents(value)
        names = {name for name in vars(value) if is_private(name) and name != "_abc_impl"}
        found |= {(owner, name) for name in names if any(name in vars(parent) for parent in parents)}
        if not parents:
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
        stored = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_stored(node)}
        for parent in parents:
            if parent not in sources:
                sources[parent] = set(re.findall(r"\bself\.(_[a-z]\w*)", inspect.getsource(parent)))
            found |= {(owner, name) for name in stored & sources[parent]}
    assert found == listed


def is_stored(node):
    return isinstance(node.ctx, ast.Store) and is_private(node.attr)


# No other file uses a private name of another package

# What is documented in spite of its name, and what stands where it is for a reason.
DOCUMENTED = {"_asdict", "_exit", "_fields", "_make", "_replace"}
ALLOWED = {("keras_selfish/_lazy.py", "_initializing")}  # Python's, read before there is any Keras

INTERNAL = re.compile(r"\b(keras\.src|tensorflow\.(python|compiler|core)|__internal__|jax\._src|jaxlib)\b")
BY_NAME = {"attrgetter", "delattr", "get", "getattr", "hasattr", "methodcaller", "pop", "setattr"}


def own_names(trees):
    """The private names that files define: of functions, classes, variables, attributes and fields."""
    found = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
                found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                found.add(getattr(node.slice, "value", None))
    return {name for name in found if isinstance(name, str) and is_private(name)}


def foreign_names(tree, own):
    """The private names of other packages that a file uses, a set of pairs (line, name).

    Args:
        tree: Its syntax tree.
        own: The private names that the package defines.
    """
    found = {*attributes(tree, own), *imports(tree), *strings(tree, own)}
    return {(line, name) for line, name in found if name not in DOCUMENTED}


def attributes(tree, own):
    """Attributes of `self` may be defined in any file, since mixins are; those of others, in the same one."""
    overridden = {override.method for override in internals.OVERRIDES}
    ours, here = own - overridden, own_names([tree]) - overridden
    parents_own = set(calls_of_parents(tree, overridden))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of_self = ast.unparse(node.value) in ("self", "cls", "super()")
            known = ours if of_self else here
            foreign = is_private(node.attr) and node.attr not in known and node not in parents_own
            if foreign or INTERNAL.search(ast.unparse(node)):
                yield node.lineno, node.attr


def calls_of_parents(tree, overridden):
    """`super()._method` within an override of that method."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name in overridden:
            own = f"super().{function.name}"
            yield from (
                n for n in ast.walk(function) if isinstance(n, ast.Attribute) and ast.unparse(n) == own
            )


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            if getattr(node, "level", 0):  # within this package
                continue
            for name in (f"{module}{alias.name}" for alias in node.names):
                parts = name.split(".")
                if parts[0] not in PACKAGES and (INTERNAL.search(name) or any(map(is_private, parts))):
                    yield node.lineno, name


def strings(tree, own):
    """Names of modules, and names of attributes for `getattr` and its like or for `__dict__`."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            if INTERNAL.search(node.value):
                yield node.lineno, node.value
        elif isinstance(node, (ast.Call, ast.Subscript)):
            yield from (
                (node.lineno, name) for name in looked_up(node) if is_private(name) and name not in own
            )


def looked_up(node):
    if isinstance(node, ast.Call):
        given = node.args if ast.unparse(node.func).rpartition(".")[2] in BY_NAME else []
    else:
        given = [node.slice] if re.search(r"__dict__$|^vars\(", ast.unparse(node.value)) else []
    return [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]


def test_no_other_file_uses_private_names_of_other_packages():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files()}
    own = own_names(trees.values())
    found = [
        f"{file}:{line} uses {name}"
        for path, tree in trees.items()
        for line, name in sorted(foreign_names(tree, own))
        if ((file := path.relative_to(REPOSITORY).as_posix()), name) not in ALLOWED
    ]
    assert not found, "Give it a function in keras_internals.py:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("model._compile_metrics", "_compile_metrics"),
        ("keras.src.ops.shape(x)", "src"),
        ("tf.__internal__.distribute", "__internal__"),
        ("import keras.src", "keras.src"),
        ("import keras.src.backend as b", "keras.src.backend"),
        ("from keras import src", "keras.src"),
        ("from keras.src.ops import shape", "keras.src.ops.shape"),
        ("from tensorflow.python.eager import context", "tensorflow.python.eager.context"),
        ("from jax._src import core", "jax._src.core"),
        ("importlib.import_module('keras.src.ops')", "keras.src.ops"),
        ("getattr(layer, '_call_context', None)", "_call_context"),
        ("operator.attrgetter('_value')(variable)", "_value"),
        ("vars(layer)['_tracker']", "_tracker"),
        ("layer.__dict__.get('_tracker')", "_tracker"),
        ("class A(B):\n    def f(self):\n        return self._tracker", "_tracker"),
        ("class A(B):\n    def f(self):\n        return super()._tracker", "_tracker"),
        (
            "class A(B):\n    def _mine(self): pass\n    def f(self):\n        self._direct_assign(0)",
            "_direct_assign",
        ),
        ("variable._direct_assign(0)", "_direct_assign"),
    ],
)
def test_the_check_sees_private_names(code, name):
    tree = ast.parse(code)
    assert name in [found for _, found in foreign_names(tree, {"_mine"} | own_names([tree]))]


@pytest.mark.parametrize(
    "code",
    [
        "class A(B):\n    def _mine(self): pass\n    def f(self, b):\n        return self._mine, b._mine",
        "class A(B):\n    def _direct_assign(self, value):\n        super()._direct_assign(value)",
        "from keras_selfish._lazy import load_all\nfrom ._mine import name",
        "row._asdict()",
        "os._exit(1)",
        "'''As in keras.src.'''",
        "self.__class__.__name__",
    ],
)
def test_the_check_leaves_our_own_names(code):
    tree = ast.parse(code)
    assert foreign_names(tree, {"_mine"} | own_names([tree])) == set()


# The versions


def test_the_versions_looked_at_are_those_that_are_required():
    from packaging.requirements import Requirement

    from keras_selfish import keras_internals_tensorflow

    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].split("\n")
    specifiers = {one.name: one.specifier for one in map(Requirement, filter(str.strip, lines))}
    for name, module in {"keras": internals, "tensorflow": keras_internals_tensorflow}.items():
        minors = [f"{major}.{minor}" for major in (2, 3) for minor in range(40)]
        assert tuple(one for one in minors if specifiers[name].contains(f"{one}.99")) == module.LOOKED_AT
