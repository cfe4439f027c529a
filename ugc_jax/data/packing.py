"""Several examples to a row: best-fit decreasing, under limits on more than one size."""

import numpy as np


def pack(sizes: np.ndarray, limit: np.ndarray) -> list[np.ndarray]:
    """Distribute items over as few rows as best-fit decreasing finds.

    sizes: i64[n, k], k sizes of each item. limit: i64[k], what the items of a row may have in all;
    every item fits alone. Items go in the order of the share that they take of their scarcest
    limit, each to the row, of those where it fits, with the least of the first size left. Returns
    the items of each row, i64[m], ascending, rows in the order of their first items.
    """
    scarcest = (sizes / np.maximum(limit, 1)).max(axis=1)
    free = np.empty_like(sizes)
    row_of = np.empty(len(sizes), np.int64)
    rows = 0
    for item in np.argsort(-scarcest, kind="stable").tolist():
        size = sizes[item]
        fitting = np.flatnonzero((free[:rows] >= size).all(axis=1))
        if len(fitting):
            row = fitting[free[fitting, 0].argmin()]
        else:
            row, rows = rows, rows + 1
            free[row] = limit
        free[row] -= size
        row_of[item] = row
    order = np.argsort(row_of, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(row_of))[:-1])
    return sorted(members, key=lambda row: row[0])
