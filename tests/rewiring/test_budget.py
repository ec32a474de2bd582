"""Whole numbers with an exact total: by hand, against plain loops, and their invariants."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_selfish.rewiring.budget import common_threshold, share_out, target_count


@pytest.mark.parametrize(
    ("total", "shares", "floors", "ceilings", "expected"),
    [
        (10, [1, 1], [0, 0], [10, 10], [5, 5]),
        (10, [3, 1], [0, 0], [10, 10], [8, 2]),  # 7.5 and 2.5: of equal remainders the first
        (20, [1, 3], [0, 0], [100, 5], [15, 5]),
        (20, [1, 1, 2], [0, 0, 0], [100, 100, 4], [8, 8, 4]),
        (9, [1, 1, 1], [0, 0, 0], [1, 2, 100], [1, 2, 6]),
        (4, [0, 5], [1, 0], [10, 10], [1, 3]),
        (4, [0, 0], [0, 0], [3, 1], [3, 1]),  # without shares: by the room there is
        (6, [0, 1, 0], [0, 0, 0], [4, 2, 8], [1, 2, 3]),  # 1.33 and 2.67
        (0, [1, 2], [0, 0], [3, 1], [0, 0]),
        (2, [1e-308], [0], [2], [2]),
        (6, [1e-300, 2e-300], [0, 0], [9, 9], [2, 4]),
        (6, [1e308, 1e308], [0, 0], [9, 9], [3, 3]),
    ],
)
def test_share_out_by_hand(total, shares, floors, ceilings, expected):
    assert share_out(total, shares, floors, ceilings) == expected


@pytest.mark.parametrize(
    ("total", "shares", "floors", "ceilings", "expected"),
    [
        (10, [3, 1], [0, 0], [10, 10], [8, 2]),  # nothing overflows
        (20, [1, 3, 6], [0, 0, 0], [100, 100, 4], [6, 10, 4]),  # 2 and 6, and of 8 that overflow 4 each
        (20, [1, 3, 6], [0, 0, 0], [5, 100, 4], [5, 11, 4]),  # the first fills up with what overflowed
        (20, [0, 0, 1], [0, 0, 0], [100, 100, 4], [8, 8, 4]),
        (21, [0, 1, 3], [2, 0, 0], [100, 100, 3], [8, 10, 3]),  # 19: 4.75 and 14.25, of which 11.25 overflow
        (6, [0, 0], [0, 0], [5, 5], [3, 3]),  # without shares
        (9, [1e-300, 2e-300], [0, 0], [9, 9], [3, 6]),
        (9, [1e308, 1e308], [0, 0], [2, 9], [2, 7]),
        (7, [0, 1], [0, 0], [3, 4], [3, 4]),
    ],
)
def test_share_out_of_what_overflows_in_equal_parts(total, shares, floors, ceilings, expected):
    assert share_out(total, shares, floors, ceilings, overflow="equal") == expected


@given(st.data())
def test_share_out_is_exact_and_within_bounds(data):
    number = data.draw(st.integers(1, 6))
    floors = data.draw(st.lists(st.integers(0, 5), min_size=number, max_size=number))
    room = data.draw(st.lists(st.integers(0, 1000), min_size=number, max_size=number))
    shares = data.draw(st.lists(st.floats(0, 1e9), min_size=number, max_size=number))
    ceilings = [low + more for low, more in zip(floors, room, strict=True)]
    total = data.draw(st.integers(sum(floors), sum(ceilings)))
    counts = share_out(total, shares, floors, ceilings, data.draw(st.sampled_from(["shares", "equal"])))
    assert sum(counts) == total
    assert all(low <= n <= high for low, n, high in zip(floors, counts, ceilings, strict=True))
    # Where there is room left, a larger share never gets less (beyond rounding and floors). Those without a
    # share are not compared: what is left for them goes by the room they have.
    for i in range(number):
        for j in range(number):
            if shares[i] >= max(shares[j], np.finfo(float).tiny) and counts[i] < ceilings[i]:
                assert counts[i] - floors[i] >= counts[j] - floors[j] - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (5, [1.0, -1.0], [0, 0], [9, 9]),
            r"`shares` must be numbers of zero or more. Received: shares=\[1.0, -1",
        ),
        ((5, [float("nan")], [0], [9]), "`shares` must be numbers"),
        ((5, [1.0], [0], [4]), "`total` must lie between the sums of floors and ceilings. Received: total=5"),
        ((1, [1.0, 1.0], [1, 1], [4, 4]), "`total` must lie between"),
    ],
)
def test_share_out_of_the_impossible(arguments, message):
    with pytest.raises(ValueError, match=message):
        share_out(*arguments)


@given(st.data())
def test_common_threshold_against_a_loop(data):
    sizes = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    scores = [
        np.array(data.draw(st.lists(st.integers(0, 6), min_size=n, max_size=n)), np.float32) for n in sizes
    ]
    count = data.draw(st.integers(0, sum(sizes)))
    kept = [list(each) for each in scores]
    expected = [0] * len(sizes)
    for _ in range(count):
        # The smallest of all, of equal ones that of the first matrix; the last of a matrix stays.
        candidates = [(min(each), index) for index, each in enumerate(kept) if len(each) > 1]
        if candidates:
            value, index = min(candidates)
            kept[index].remove(value)
            expected[index] += 1
    assert common_threshold(scores, count) == expected


@pytest.mark.parametrize(
    ("sparsity", "total", "count"),
    [(0.67, 100, 33), (0.5, 5, 3), (0.99, 10, 1), (0.0, 7, 7), (0.9, 1000, 100), (0.875, 4, 1)],
)
def test_target_count(sparsity, total, count):
    assert target_count(sparsity, total) == count
