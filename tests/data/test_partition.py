import numpy as np
import pytest

from bnnzoo.data import partition


@pytest.mark.parametrize(
    ("test_size", "rows", "count"), [(0.1, 506, 51), (0.2, 5, 1), (0.01, 3, 1), (0.99, 3, 2), (7, 8, 7)]
)
def test_count(test_size, rows, count):
    assert partition.count_of(test_size, rows) == count


@pytest.mark.parametrize("test_size", [0, 10, -1, 0.0, 1.0, -0.1, 1.5, True, "0.1", float("nan")])
def test_bad_sizes(test_size):
    with pytest.raises(ValueError, match="test_size"):
        partition.count_of(test_size, 10)


def test_one_row_cannot_be_split():
    with pytest.raises(ValueError, match="1 row"):
        partition.count_of(0.5, 1)


@pytest.mark.parametrize("seed", [-1, 1.5, True, None, "a"])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed"):
        partition.generator(seed)


@pytest.mark.parametrize("labels", [None, np.repeat([0, 1, 2], [50, 30, 20])])
def test_a_split_is_a_seeded_partition(labels):
    train, test = partition.split_indices(100, 23, 4, labels)
    assert sorted([*train, *test]) == list(range(100))
    assert len(test) == 23
    again = partition.split_indices(100, 23, 4, labels)
    np.testing.assert_array_equal(test, again[1])
    assert set(partition.split_indices(100, 23, 5, labels)[1]) != set(test)
    assert list(test) != sorted(test)


def test_global_generator_is_not_touched():
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    partition.split_indices(100, 23, 4, np.arange(100) % 3)
    partition.fold_indices(100, 3, 4)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("count", range(1, 60, 3))
def test_strata_have_their_share(count):
    sizes = np.array([33, 17, 9, 1])
    labels = np.repeat([3, 1, 7, 0], sizes)
    train, test = partition.split_indices(60, count, count, labels)
    assert len(test) == count
    for label, size in zip([3, 1, 7, 0], sizes, strict=True):
        number = int((labels[test] == label).sum())
        assert abs(number - size * count / 60) < 1 + (sizes == 1).any()
        if count <= 56:
            assert (labels[train] == label).any()


def test_more_classes_than_training_rows_still_fills_the_test_set():
    labels = np.arange(10)
    train, test = partition.split_indices(10, 9, 0, labels)
    assert (len(train), len(test)) == (1, 9)


def test_which_class_gets_the_odd_row_is_random():
    labels = np.array([0] * 10 + [1] * 10)
    odd = {int(labels[partition.split_indices(20, 3, seed, labels)[1]].sum()) for seed in range(20)}
    assert odd == {1, 2}


def test_every_row_is_drawn_equally_often():
    hits = np.zeros(10)
    for seed in range(2000):
        hits[partition.split_indices(10, 3, seed)[1]] += 1
    # Binomial(2000, 0.3): 6 standard deviations of 20.5 each.
    assert np.abs(hits - 600).max() < 123


@pytest.mark.parametrize("labels", [None, np.repeat([0, 1], [30, 11])])
def test_folds(labels):
    folds = partition.fold_indices(41, 4, 0, labels)
    assert sorted(np.concatenate(folds)) == list(range(41))
    assert {len(fold) for fold in folds} == {10, 11}
    if labels is not None:
        assert {int(labels[fold].sum()) for fold in folds} == {2, 3}


@pytest.mark.parametrize("k", [1, 0, 6, 2.0, True])
def test_bad_folds(k):
    with pytest.raises(ValueError, match="between 2 and 5"):
        partition.fold_indices(5, k, 0)
