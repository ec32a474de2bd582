import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_selfish.data import Windows, batch_columns, load_corpus


def as_lists(batches):
    return [(x["tokens"].tolist(), x["first"].tolist(), y.tolist()) for x, y in batches]


@st.composite
def any_windows(draw):
    batch_size = draw(st.integers(1, 6))
    length = draw(st.integers(2 * batch_size, 12 * batch_size))
    tokens = np.random.default_rng([length, batch_size]).integers(0, 50, length)
    return tokens, Windows(tokens, batch_size, time_steps=draw(st.integers(1, 13)))


def test_columns_are_contiguous_and_trimmed():
    columns = batch_columns(np.arange(11), batch_size=3)
    np.testing.assert_array_equal(columns, [[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    assert columns.dtype == np.int32


def test_windows_worked_out_by_hand():
    windows = Windows(np.arange(100, 113), batch_size=2, time_steps=2)  # columns of 6; 112 is left out
    assert as_lists(windows) == [
        ([[100, 101], [106, 107]], [True, True], [[101, 102], [107, 108]]),
        ([[102, 103], [108, 109]], [False, False], [[103, 104], [109, 110]]),
        ([[104], [110]], [False, False], [[105], [111]]),
    ]
    assert (len(windows), windows.predictions, windows.batch_size) == (3, 10, 2)


@given(any_windows())
def test_windows_put_together_are_the_columns(case):
    tokens, windows = case
    columns = batch_columns(tokens, windows.batch_size)
    batches = list(windows)
    assert len(batches) == len(windows)
    np.testing.assert_array_equal(np.hstack([x["tokens"] for x, _ in batches]), columns[:, :-1])
    np.testing.assert_array_equal(np.hstack([y for _, y in batches]), columns[:, 1:])
    assert sum(y.size for _, y in batches) == windows.predictions
    assert {y.shape[1] for _, y in batches[:-1]} <= {windows.time_steps}
    assert [x["first"].tolist() for x, _ in batches] == [
        [index == 0] * windows.batch_size for index in range(len(windows))
    ]
    assert as_lists(windows) == as_lists(batches)  # a second pass is the same


def test_batches_are_the_readers_own():
    windows = Windows(range(10), 2, 2)
    before = as_lists(windows)
    inputs, targets = windows[0]
    inputs["tokens"][:] = targets[:] = -1
    assert as_lists(windows) == before


@pytest.mark.parametrize(
    ("split", "batch_size", "predictions"),
    [("validation", 20, 73_740), ("test", 20, 82_400), ("validation", 10, 73_750), ("test", 1, 82_429)],
)
def test_predictions_of_published_comparisons(shared, split, batch_size, predictions):
    corpus = load_corpus("ptb", shared / "data" / "ptb")
    assert Windows(getattr(corpus, split), batch_size, 35).predictions == predictions


@settings(max_examples=10)  # each makes a graph of its own
@given(any_windows())
def test_dataset_gives_the_same_batches(case):
    pytest.importorskip("tensorflow")
    _, windows = case
    dataset = windows.dataset()
    assert as_lists(dataset.as_numpy_iterator()) == as_lists(windows)
    assert as_lists(dataset.as_numpy_iterator()) == as_lists(windows)
    assert int(dataset.cardinality()) == len(windows)


def test_dataset_has_a_static_batch_and_a_free_time_axis():
    tf = pytest.importorskip("tensorflow")
    inputs, targets = Windows(range(50), 4, 5).dataset().element_spec
    assert inputs["tokens"] == targets == tf.TensorSpec((4, None), tf.int32)
    assert inputs["first"] == tf.TensorSpec((4,), tf.int32)


def test_each_replica_reads_its_own_columns(two_replicas):
    windows = Windows(range(40), batch_size=4, time_steps=4)
    seen = [{}, {}]
    for inputs, targets in two_replicas.experimental_distribute_dataset(windows.dataset()):
        for name, values in {**inputs, "targets": targets}.items():
            for replica, value in enumerate(two_replicas.experimental_local_results(values)):
                seen[replica].setdefault(name, []).append(value.numpy())
    for replica, got in enumerate(seen):
        rows = windows.columns[2 * replica : 2 * replica + 2]
        np.testing.assert_array_equal(np.hstack(got["tokens"]), rows[:, :-1])
        np.testing.assert_array_equal(np.hstack(got["targets"]), rows[:, 1:])
        assert [first.tolist() for first in got["first"]] == [[1] * 2, [0] * 2, [0] * 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((range(9), 0, 5), "`batch_size` must be a positive integer. Received: batch_size=0"),
        ((range(9), 2.0, 5), "`batch_size` must be a positive integer.*Received: batch_size=2.0"),
        ((range(9), 2, -1), "`time_steps` must be a positive integer. Received: time_steps=-1"),
        ((range(15), 8, 5), "at least 2 × `batch_size` long.*Received: 15 tokens, batch_size=8"),
        (([], 1, 5), "Received: 0 tokens, batch_size=1"),
        (([0.5, 1.5], 1, 5), r"vector of integer token ids.*shape \(2,\) and type float64"),
        (([[1, 2], [3, 4]], 1, 5), r"vector of integer token ids.*shape \(2, 2\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Windows(*arguments)


def test_the_shortest_corpus():
    assert as_lists(Windows(range(4), 2, 35)) == [([[0], [2]], [True, True], [[1], [3]])]


def test_windows_by_index():
    windows = Windows(range(12), 2, 2)
    assert as_lists([windows[-1]]) == as_lists(windows)[-1:]
    with pytest.raises(IndexError):
        windows[3]
    assert repr(windows) == "<Windows: 3 of 2 × 2 tokens, 10 predictions>"


def test_reading_data_needs_neither_keras_nor_a_backend(run_python):
    code = """
        import sys
        from keras_selfish.data import Windows, load_corpus
        print(len(load_corpus("python_docs").train) > 0, len(Windows(range(9), 2, 2)))
        print([name for name in ("keras", "tensorflow", "jax", "torch") if name in sys.modules])
    """
    assert run_python(code).splitlines() == ["True 2", "[]"]
