import numpy as np
import pandas as pd
import pytest
import torch

from bnnzoo.data import Dataset


def xy(rows=6):
    return np.arange(rows * 2.0).reshape(rows, 2), np.linspace(0.5, 2, rows)


@pytest.mark.parametrize(
    "x",
    [
        [[0.0, 1.0], [2.0, 3.0]],
        [[0, 1], [2, 3]],
        np.array([[0, 1], [2, 3]], dtype=np.int16),
        np.array([[0, 1], [2, 3]], dtype=np.uint16),
        np.array([[0, 1], [2, 3]], dtype=">f8"),
        np.array([[0, 1], [2, 3]], dtype=np.float16),
        np.array([[0, 1], [2, 3]], dtype=object),
        np.array([[0, 2], [1, 3]], dtype=float).T,
        torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8),
        [torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])],
        pd.DataFrame({"a": [0, 2], "b": [1.0, 3.0]}),
    ],
)
def test_inputs_of_any_kind_become_the_default_dtype(x):
    data = Dataset(x, [0.5, 1.5])
    assert data.x.dtype == torch.float32
    assert data.x.tolist() == [[0, 1], [2, 3]]
    assert data.y.dtype == torch.float32


def test_tensors_keep_their_dtype_and_lose_their_graph():
    data = Dataset(torch.zeros(2, 1, dtype=torch.float64, requires_grad=True), torch.zeros(2, dtype=torch.float64))
    assert data.x.dtype == data.y.dtype == torch.float64
    assert not data.x.requires_grad


def test_arrays_are_copied():
    x, y = xy()
    x = x.astype(np.float32)
    x.flags.writeable = False
    data = Dataset(x, y)
    data.x[0, 0] = 9
    assert x[0, 0] == 0


@pytest.mark.parametrize(
    ("y", "task", "dtype", "values"),
    [
        ([0.0, 1.0, 2.0], "regression", torch.float32, [0, 1, 2]),
        ([0, 1, 2], "classification", torch.int64, [0, 1, 2]),
        ([-1, 1, 2], "regression", torch.float32, [-1, 1, 2]),
        ([True, False, True], "classification", torch.int64, [1, 0, 1]),
        (torch.tensor([2, 0, 1], dtype=torch.int32), "classification", torch.int64, [2, 0, 1]),
        (["b", "a", "c"], "classification", torch.int64, [1, 0, 2]),
        (pd.Series(["b", "a", "c"], dtype="category"), "classification", torch.int64, [1, 0, 2]),
        (pd.Series([1, 0, 2], dtype="Int64"), "classification", torch.int64, [1, 0, 2]),
        (np.array([[1.5], [2.5], [3.5]]), "regression", torch.float32, [1.5, 2.5, 3.5]),
        (pd.DataFrame({"t": [1.5, 2.5, 3.5]}), "regression", torch.float32, [1.5, 2.5, 3.5]),
    ],
)
def test_the_task_is_inferred_from_the_targets(y, task, dtype, values):
    data = Dataset(np.zeros((3, 1)), y)
    assert data.task == task
    assert data.y.dtype == dtype
    assert data.y.tolist() == values


def test_a_given_task_converts():
    x = np.zeros((3, 1))
    assert Dataset(x, [0, 1, 2], task="regression").y.dtype == torch.float32
    assert Dataset(x, torch.tensor([0, 1, 2]), task="regression").y.dtype == torch.float32
    assert Dataset(x, [0.0, 1.0, 2.0], task="classification").y.dtype == torch.int64
    assert Dataset(x, [0, 5, 2], task="counts").y.dtype == torch.float32


def test_text_labels_name_the_classes():
    data = Dataset(np.zeros((4, 1)), np.array(["no", "yes", "no", "maybe"]))
    assert data.class_names == ("maybe", "no", "yes")
    assert data.y.tolist() == [1, 2, 1, 0]


def test_several_outputs_and_maps_of_labels_keep_their_shape():
    assert Dataset(np.zeros((3, 1)), np.zeros((3, 2))).y.shape == (3, 2)
    assert Dataset(np.zeros((3, 1)), pd.DataFrame(np.ones((3, 2)))).y.shape == (3, 2)
    assert Dataset(np.zeros((3, 1, 4, 4)), np.zeros((3, 4, 4), dtype=int)).y.shape == (3, 4, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_in_x(bad):
    x, y = xy()
    x[3, 1] = x[5, 0] = bad
    kind = "NaN" if np.isnan(bad) else "infinity"
    with pytest.raises(
        ValueError, match=f"x has 2 NaN or infinite values of 12.*first of them {kind} in row 3, column 1"
    ):
        Dataset(x, y)
    with pytest.raises(ValueError, match="row 3, column 'b'"):
        Dataset(x, y, feature_names=["a", "b"])
    with pytest.raises(ValueError, match=r"row 3, position \(0, 1\)"):
        Dataset(x.reshape(6, 1, 2), y)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_nan_in_y(task):
    x, y = xy()
    y = np.zeros(6)
    y[4] = np.nan
    with pytest.raises(ValueError, match=r"y has 1 NaN or infinite values of 6.*in row 4"):
        Dataset(x, y, task=task)


def test_values_too_large_for_float32_are_not_silently_infinite():
    x, y = xy()
    x[0, 0] = 1e300
    with pytest.raises(ValueError, match=r"dtype torch\.float32.*infinity in row 0, column 0"):
        Dataset(x, y)


def test_a_sum_that_overflows_is_not_mistaken_for_infinity():
    assert len(Dataset(np.full((4, 1), 3e38), np.zeros(4))) == 4


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((4, 2)), np.zeros(3), "x has 4 rows and y has 3"),
        (np.zeros((0, 2)), np.zeros(0), "is empty"),
        ([], [], "x is empty"),
        (np.zeros(4), np.zeros(4), r"x has shape \(4,\).*x.reshape\(-1, 1\)"),
        (np.zeros((4, 0)), np.zeros(4), "no features"),
        (np.zeros((4, 2)), 1.0, "y is a single number"),
        (np.zeros((4, 2)), np.zeros((4, 0)), "no targets"),
        ([[1, 2], [3]], [0, 1], "x has rows of different lengths"),
        (np.zeros((2, 1)), [[0], [1, 2]], "y has rows of different lengths"),
        ([["a", 1.0], ["b", 2.0]], [0.0, 1.0], "not a number. Encode text"),
        (np.array([["a"], [1.0]], dtype=object), [0.0, 1.0], "x holds values that are not numbers"),
        (np.array([["2020-01-01"]], dtype="datetime64[D]"), [0.0], "datetime64"),
        (np.zeros((2, 1), dtype=complex), [0.0, 1.0], "x is complex"),
        (torch.eye(2).to_sparse(), [0.0, 1.0], r"sparse tensor.*x.to_dense\(\)"),
        (np.zeros((2, 1)), np.array(["a", None], dtype=object), "y mixes text"),
        (pd.DataFrame(index=[0, 1]), [0.0, 1.0], "x has no columns"),
        (pd.DataFrame({"a": [1, 2], "city": ["x", "y"]}), [0.0, 1.0], "not numbers: 'city'. Encode text"),
        (pd.DataFrame({"a": [1.0, None], "b": [1.0, 2.0]}), [0.0, 1.0], r"column 'a' \(1 of 2 rows\)"),
        (np.zeros((2, 1)), pd.Series([1.0, None], name="t"), r"missing values in column 't' \(1 of 2 rows\)"),
    ],
)
def test_unusable_data(x, y, message):
    with pytest.raises(ValueError, match=message):
        Dataset(x, y)


@pytest.mark.parametrize(
    ("y", "task", "message"),
    [
        ([0.5, 1.0], "classification", "values such as 0.5"),
        ([-1, 1], "classification", "smallest label is -1"),
        ([0.5, 1.0], "counts", "1 of 2 values are not, the first of them 0.5"),
        ([-1, 1], "counts", "first of them -1"),
        (["a", "b"], "regression", "y holds text"),
    ],
)
def test_targets_that_do_not_fit_the_task(y, task, message):
    with pytest.raises(ValueError, match=message):
        Dataset(np.zeros((2, 1)), y, task=task)


def test_none_is_missing_not_text():
    with pytest.raises(ValueError, match="x has 1 NaN"):
        Dataset([[1.0], [None]], [0.0, 1.0])
