"""Row numbers of random splits: seeded, and independent of every global generator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def generator(seed: int) -> np.random.Generator:
    """Return a generator of its own for ``seed`` (an integer of at least 0)."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, but it is {seed!r}")
    return np.random.default_rng(int(seed))


def sample_generator(num_samples: int, seed: int) -> np.random.Generator:
    """Return a generator for ``num_samples`` generated rows.

    Args:
        num_samples: The number of rows, an integer of at least 1.
        seed: As for :func:`generator`.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int | np.integer) or num_samples < 1:
        raise ValueError(f"num_samples must be an integer of at least 1, but it is {num_samples!r}")
    return generator(seed)


def count_of(test_size: float, rows: int) -> int:
    """Return how many of ``rows`` rows a test set of ``test_size`` has.

    Args:
        test_size: A fraction in (0, 1), or a number of rows as an ``int`` from 1 to ``rows - 1``.
        rows: The number of rows that are split.

    Raises:
        ValueError: If one of the two parts would be empty.
    """
    if rows < 2:
        raise ValueError(f"cannot split a data set of {rows} row: a training and a test set need one row each")
    if isinstance(test_size, int | np.integer) and not isinstance(test_size, bool):
        if not 1 <= test_size <= rows - 1:
            raise ValueError(f"test_size={test_size} rows: with {rows} rows it must be between 1 and {rows - 1}")
        return int(test_size)
    if not isinstance(test_size, float | np.floating) or not 0.0 < test_size < 1.0:
        raise ValueError(f"test_size must be a fraction in (0, 1) or a number of rows, but it is {test_size!r}")
    return min(max(round(rows * float(test_size)), 1), rows - 1)


def split_indices(rows: int, count: int, seed: int, labels: NDArray | None = None) -> tuple[Indices, Indices]:
    """Draw ``count`` test rows out of ``rows`` at random.

    Args:
        rows: The number of rows.
        count: The number of test rows.
        seed: Fixes the draw.
        labels: Class labels [rows] to stratify by: each class then has its share of the test set, rounded so that
            the shares add up to ``count`` exactly. A class keeps a training row as long as that is possible.

    Returns:
        The training and the test rows, each in random order.
    """
    rng = generator(seed)
    order = rng.permutation(rows)
    if labels is None:
        return order[count:], order[:count]
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    share = sizes * (count / rows)
    quota = np.floor(share).astype(np.int64)
    # The largest remainders take the rows left over; a class whose last training row would go comes last.
    rank = np.where(quota + 1 < sizes, share - quota, -1.0)
    shuffled = rng.permutation(len(sizes))  # ties between classes are broken at random
    preferred = shuffled[np.argsort(-rank[shuffled], kind="stable")]
    preferred = preferred[quota[preferred] < sizes[preferred]]
    quota[preferred[: count - quota.sum()]] += 1
    is_test = np.zeros(rows, dtype=bool)
    for label, number in enumerate(quota):
        is_test[order[inverse[order] == label][:number]] = True
    return order[~is_test[order]], order[is_test[order]]


def fold_indices(rows: int, k: int, seed: int, labels: NDArray | None = None) -> list[Indices]:
    """Deal the rows out to ``k`` folds at random.

    Args:
        rows: The number of rows.
        k: The number of folds, from 2 to ``rows``.
        seed: Fixes the draw.
        labels: Class labels [rows] to stratify by: the number of rows of one class then differs by at most one
            between folds.

    Returns:
        The rows of each fold. The sizes of the folds differ by at most one.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 2 <= k <= rows:
        raise ValueError(f"k={k!r} folds: with {rows} rows it must be an integer between 2 and {rows}")
    order = generator(seed).permutation(rows)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    return [order[fold::k] for fold in range(k)]
