"""Best-fit decreasing: nothing lost, nothing over a limit, rows well filled."""

import numpy as np
import pytest

from ugc_jax.data.packing import pack


@pytest.mark.parametrize("seed", range(20))
def test_rows_hold_every_item_once_within_all_limits(seed):
    rng = np.random.default_rng(seed)
    limit = rng.integers(1, 50, 3)
    sizes = rng.integers(0, limit + 1, (rng.integers(1, 300), 3))
    rows = pack(sizes, limit)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(sizes)))
    assert all((sizes[row].sum(axis=0) <= limit).all() for row in rows)
    assert all((np.diff(row) > 0).all() for row in rows)
    assert (np.diff([row[0] for row in rows]) > 0).all()


def test_what_fits_exactly_is_found():
    sizes = np.array([[2], [6], [5], [4], [8], [5], [1], [9]])
    rows = [sorted(sizes[row, 0].tolist()) for row in pack(sizes, np.array([10]))]
    assert sorted(rows) == [[1, 9], [2, 8], [4, 6], [5, 5]]


def test_the_scarcest_limit_counts():
    """Two long clips with few tokens never share a row, but each takes a long text along."""
    sizes = np.array([[10, 9], [80, 0], [10, 9], [80, 0]])
    assert [row.tolist() for row in pack(sizes, np.array([100, 10]))] == [[0, 1], [2, 3]]


def test_a_size_that_no_item_has_needs_no_room():
    assert len(pack(np.array([[5, 0], [5, 0]]), np.array([10, 0]))) == 1


def test_rows_of_many_examples_are_nearly_full():
    sizes = np.random.default_rng(0).integers(100, 900, (2000, 1))
    rows = pack(sizes, np.array([4096]))
    assert sizes.sum() / (len(rows) * 4096) > 0.99
