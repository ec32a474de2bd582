"""Matrices divided among devices: which axes are, and that training is that of one device."""

import re

import keras
import numpy as np
import pytest

from keras_selfish.layers import SparseConv2D, SparseDense
from keras_selfish.models import Architecture, LanguageModel, layout_map

# What JAX needs to be four devices on a CPU, with threads enough for what they exchange.
FOUR_DEVICES = {
    "NPROC": "32",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4",
}


def mesh(*shape, names=("batch", "model")):
    devices = [f"cpu:{index}" for index in range(int(np.prod(shape)))]
    return keras.distribution.DeviceMesh(shape, list(names), devices)


def axes_of(layouts):
    return {path: layout.axes for path, layout in layouts.items() if not path.endswith("_mask")}


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": True},
        {"experts": 3},
        {"n_of_m": (2, 4)},
        {"distribution": "erk", "bias_vectors": 2, "units": (8, 16)},
        {"cell": "rhn", "cell_options": {"depth": 2}},
        {"cell": "on_lstm", "cell_options": {"chunk_size": 4}},
    ],
    ids=str,
)
def test_each_mask_is_divided_as_its_weight(settings):
    settings = {"units": 8, "layers": None if "units" in settings else 1, **settings}
    layouts = layout_map(Architecture(20, **settings), mesh(1, 4))
    model = LanguageModel(20, batch_size=4, **settings)
    matrices = {variable.path: variable for variable in model.trainable_variables if len(variable.shape) == 2}
    matrices = {path: variable for path, variable in matrices.items() if not path.endswith("bias")}
    assert matrices
    for path, variable in matrices.items():
        axes = layouts[path].axes
        assert axes == layouts[f"{path}_mask"].axes
        (divided,) = (index for index, axis in enumerate(axes) if axis == "model")
        assert variable.shape[divided] % 4 == 0
        assert hasattr(variable, "masked_weight")
    # By the paths that the model has, and none of another model.
    paths = {variable.path for variable in model.variables}
    assert {path.removesuffix("_mask") for path in layouts} <= paths


def test_the_longest_axis_that_divides():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            SparseConv2D(6, 3, name="convolution"),
            keras.layers.GlobalAveragePooling2D(name="pooling"),
            SparseDense(5, name="odd"),
            SparseDense(4, name="last"),
        ],
        name="network",
    )

    def axes_of_layers(layouts):  # whether paths begin with the model's name depends on the backend
        return {path.removeprefix("network/"): axes for path, axes in axes_of(layouts).items()}

    assert axes_of_layers(layout_map(model, mesh(1, 2))) == {
        "convolution/kernel": (None, None, None, "model"),
        "odd/kernel": ("model", None),
        "last/kernel": (None, "model"),
    }
    assert axes_of(layout_map(lambda: model, mesh(3, 1))) == {}
    assert axes_of_layers(layout_map(model, mesh(5, 2, names=("model", "batch")))) == {
        "odd/kernel": (None, "model"),
        "last/kernel": ("model", None),
    }


@pytest.mark.backends("tensorflow", "jax")
@pytest.mark.parametrize("by", ["settings", "function"])
def test_models_made_for_their_shapes_spend_no_seeds(by):
    settings = {"units": 4, "layers": 1, "dropout": 0.5}
    model = Architecture(8, **settings) if by == "settings" else lambda: LanguageModel(8, **settings)
    found = []
    for ask in (False, True):
        keras.utils.set_random_seed(1)
        if ask:
            layout_map(model, mesh(1, 2))
        variables = LanguageModel(8, **settings, batch_size=2).variables
        found.append([keras.ops.convert_to_numpy(variable) for variable in variables])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"`units` must be a multiple of the 4 devices .* units=6; take 4"):
        layout_map(Architecture(20, units=6), mesh(1, 4))
    with pytest.raises(ValueError, match=r"`embedding_units` must be .* embedding_units=10; take 8"):
        layout_map(Architecture(20, units=8, embedding_units=10), mesh(1, 4))
    with pytest.raises(ValueError, match=r"`axis` must be .* one of batch, model. Received: axis='mdoel'"):
        layout_map(Architecture(20, units=8), mesh(1, 4), axis="mdoel")


@pytest.mark.backends("jax")
def test_a_model_larger_than_memory_has_a_layout():
    """20 TB of weights."""
    architecture = Architecture(200_000_000, units=16384, layers=2)
    layouts = layout_map(architecture, mesh(1, 4))
    assert layouts["decoder/kernel"].axes == (None, "model")
    made = layout_map(lambda: LanguageModel(200_000_000, units=16384, sparsity=0.0), mesh(1, 4))
    assert axes_of(made) == axes_of(layouts)


TRAINING = """
    import sys
    import jax
    import keras
    import numpy as np
    from keras_selfish import DSR, SET, SNFS, RigL, SelfishRewiring
    from keras_selfish import SNTASGD, LanguageModel, Perplexity, TokenCrossEntropy
    from keras_selfish.data import Windows
    from keras_selfish.masks import masked_weights
    from keras_selfish.models import Architecture, layout_map
    from keras_selfish.rewiring import device_arrays_jax
    from keras_selfish.variables import is_divided, to_numpy

    out, method = sys.argv[1:3]
    settings = {"units": 8, "layers": 1, "sparsity": 0.6, "dropout": 0.2, **eval(sys.argv[3])}
    mesh = lambda *shape: keras.distribution.DeviceMesh(shape, ["batch", "model"])
    divided = lambda *shape: keras.distribution.ModelParallel(
        layout_map=layout_map(Architecture(24, **settings), mesh(*shape))
    )
    distributions = {
        "one": None,
        "data": keras.distribution.DataParallel(),
        "model": divided(1, 4),
        "both": divided(2, 2),
    }
    windows = Windows(np.random.default_rng(0).integers(0, 24, 4 * (6 * 6 + 1)), 4, 6)
    for name, distribution in distributions.items():
        keras.utils.clear_session()
        keras.distribution.set_distribution(distribution)
        model = LanguageModel(24, batch_size=4, **settings)
        model.compile(SNTASGD(1.0, global_clipnorm=0.25), TokenCrossEntropy(), metrics=[Perplexity()])
        model.optimizer.build(model.trainable_variables)
        model.optimizer.start_averaging()
        options = {"gradient_data": windows} if method in ("RigL", "SNFS") else {}
        rewiring = globals()[method](0.4, frequency=3, total_steps=100, seed=1, **options)
        history = model.fit(
            windows.batches(), validation_data=windows.batches(), epochs=3, shuffle=False, verbose=0,
            callbacks=[rewiring],
        ).history
        if name in ("model", "both"):
            for weight, average, births in zip(
                model.trainable_variables, model.optimizer.averages, model.optimizer.births
            ):
                if births is not None:
                    mask = weight.masked_weight.mask
                    assert is_divided(weight)
                    specs = {str(v.value.sharding.spec) for v in (weight, mask, average, births)}
                    assert len(specs) == 1, specs
        if name in ("data", "both"):
            states = [v for v in model.variables if "_state_" in v.name and "carried" in v.path]
            assert states and all(v.value.sharding.spec[0] == "batch" for v in states)
        variables = {v.path: to_numpy(v) for v in [*model.variables, *model.optimizer.variables]
                     if "seed_generator" not in v.path}
        np.savez(f"{out}/{name}.npz", losses=[history["loss"], history["val_loss"]], **variables)
        model.save(f"{out}/{name}.keras")
    # Only numbers, and no part of the matrix, go from device to device.
    layout = mesh(1, 4)
    scores = keras.distribution.distribute_tensor(
        np.ones((8, 16), "float32"), keras.distribution.TensorLayout((None, "model"), layout)
    )
    compiled = device_arrays_jax.lowest_of.lower(scores, scores > 0, 5).compile().as_text()
    assert "all-reduce" in compiled
    assert "all-gather" not in compiled and "all-to-all" not in compiled
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("RigL", {}),
        ("SelfishRewiring", {}),
        ("RigL", {"tied": True, "block_shape": (2, 1)}),
        ("SelfishRewiring", {"experts": 2, "locked": True}),
        ("SET", {}),
        ("DSR", {}),
        ("SNFS", {}),
    ],
)
def test_training_is_that_of_one_device(method, settings, run_python, tmp_path):
    """Masks, births and counts exactly; numbers but for sums that are taken in another order."""
    run_python(TRAINING, tmp_path, method, repr(settings), backend="jax", env=FOUR_DEVICES, timeout=600)
    results = {path.stem: dict(np.load(path)) for path in tmp_path.glob("*.npz")}
    assert set(results) == {"one", "data", "model", "both"}
    expected = results.pop("one")
    moved = [name for name in expected if name.endswith("_birth") and (expected[name] > 0).any()]
    assert moved  # connections have come since the beginning
    for name, found in results.items():
        assert found.keys() == expected.keys()
        for path, array in expected.items():
            exact = array.dtype == bool or re.search(r"_birth$|iteration$|trigger$", path)
            tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-5, "atol": 2e-6}
            np.testing.assert_allclose(found[path], array, **tolerance, err_msg=f"{path}, {name}")


@pytest.mark.slow
def test_a_model_that_was_divided_is_loaded_on_one_device(run_python, tmp_path):
    run_python(TRAINING, tmp_path, "RigL", "{}", backend="jax", env=FOUR_DEVICES, timeout=600)
    tokens = np.random.default_rng(1).integers(0, 24, (4, 5))
    inputs = {"tokens": tokens, "first": np.ones(4, "int32")}
    outputs = {
        name: keras.models.load_model(tmp_path / f"{name}.keras").predict(inputs, verbose=0)
        for name in ("one", "model", "both")
    }
    for found in outputs.values():
        np.testing.assert_allclose(found, outputs["one"], rtol=1e-4, atol=1e-5)


LARGE = """
    import keras
    import numpy as np
    from keras_selfish import SNTASGD, SparseDense, SwitchedDense
    from keras_selfish.variables import to_numpy

    mesh = keras.distribution.DeviceMesh((1, 4), ["batch", "model"])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*kernel.*"] = (None, "model")
    found = []
    for distribution in (None, keras.distribution.ModelParallel(layout_map=layouts)):
        keras.distribution.set_distribution(distribution)
        normal = keras.initializers.RandomNormal(seed=3)
        layer = SparseDense(4096, sparsity=0.9, mask_seed=1, kernel_initializer=normal)
        switched = SwitchedDense(4096)
        for one in (layer, switched):
            one.build((None, 4096))
        optimizer = SNTASGD(1.0)
        optimizer.build(layer.trainable_variables)
        assert bool(np.all(to_numpy(switched.mask)))
        found.append([to_numpy(v) for v in (layer.kernel, layer.kernel_mask, optimizer.births[0])])
    for one, divided in zip(*found):
        np.testing.assert_allclose(divided, one, rtol=1e-5, atol=1e-7)
"""


@pytest.mark.slow
def test_large_matrices_are_made_where_they_are_kept(run_python):
    """Keras has JAX compile the initializers of variables of 250 MiB over all devices."""
    run_python(LARGE, backend="jax", env=FOUR_DEVICES, timeout=600)
