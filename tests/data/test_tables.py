import gzip

import numpy as np
import pandas as pd
import pytest
import torch

from bnnzoo.data import from_csv, from_frame


def frame(rows=40):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "area": rng.uniform(20, 200, rows),
            "rooms": rng.integers(1, 6, rows),
            "price": rng.normal(300, 50, rows),
            "kind": np.where(np.arange(rows) % 3 == 0, "house", "flat"),
        }
    )


def write(tmp_path, text, name="my.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_csv_file_is_read_in_its_own_units_and_order(tmp_path):
    table = frame().drop(columns="kind")
    path = tmp_path / "houses.csv"
    table.to_csv(path, index=False)
    data = from_csv(path, "price")
    assert data.name == "houses"
    assert data.task == "regression"
    assert data.target_name == "price"
    assert data.feature_names == ("area", "rooms")
    np.testing.assert_allclose(data.x, table[["area", "rooms"]], rtol=1e-6)
    np.testing.assert_allclose(data.y, table["price"], rtol=1e-6)
    assert data.standardization is None
    assert data.split(0.25).train.standardization is not None


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators(tmp_path, separator):
    path = write(tmp_path, f"a{separator}t\n1{separator}0.5\n2{separator}1.5\n")
    data = from_csv(str(path), "t", separator="|" if separator == "|" else None)
    assert data.x.tolist() == [[1], [2]]
    assert data.y.tolist() == [0.5, 1.5]


def test_compressed_files(tmp_path):
    path = tmp_path / "z.csv.gz"
    path.write_bytes(gzip.compress(b"a,t\n1,0.5\n2,1.5\n"))
    assert from_csv(path, "t").name == "z"


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["b", "a"] * 5, "classification", ("a", "b")),
        ([True, False] * 5, "classification", ("False", "True")),
        ([3, 7] * 5, "classification", ("3", "7")),
        (list(range(10)), "regression", None),
        ([1.0, 2.0] * 5, "regression", None),
        ([-1, 1] * 5, "classification", ("-1", "1")),
    ],
)
def test_the_task_is_inferred(tmp_path, values, task, classes):
    table = pd.DataFrame({"x": np.arange(10.0), "t": values})
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False)
    for data in (from_csv(path, "t"), from_frame(table, "t")):
        assert data.task == task
        assert data.class_names == classes
        assert data.target_name == "t"
        if classes:
            assert [classes[label] for label in data.y] == [str(value) for value in values]


def test_integers_are_labels_up_to_twenty_of_them():
    for distinct, task in ((20, "classification"), (21, "regression")):
        table = pd.DataFrame({"x": np.arange(100.0), "t": np.arange(100) % distinct})
        assert from_frame(table, "t").task == task


def test_a_given_task_wins():
    table = pd.DataFrame({"x": np.arange(10.0), "t": [3, 7] * 5})
    assert from_frame(table, "t", task="regression").y.tolist() == [3, 7] * 5
    assert from_frame(table, "t", task="counts").task == "counts"
    table["t"] = np.arange(10.0)
    assert from_frame(table, "t", task="classification").num_classes == 10
    with pytest.raises(ValueError, match=r"unknown task 'class'.*classification"):
        from_frame(table, "t", task="class")


def test_several_targets_and_chosen_features():
    data = from_frame(frame(), ["price", "area"], features=["rooms"])
    assert data.y.shape == (40, 2)
    assert data.feature_names == ("rooms",)
    assert data.task == "regression"
    with pytest.raises(ValueError, match="has one target, but 2"):
        from_frame(frame(), ["price", "area"], features=["rooms"], task="classification")


def test_columns_need_not_be_called_by_text():
    data = from_frame(pd.DataFrame(np.arange(6.0).reshape(3, 2)), 1)
    assert data.feature_names == ("0",)
    assert data.y.tolist() == [1, 3, 5]


def test_nullable_and_categorical_columns():
    table = pd.DataFrame(
        {
            "x": pd.array([1, 2, 3, 4], dtype="Int64"),
            "b": pd.array([True, False, True, True], dtype="boolean"),
            "t": pd.Categorical(["lo", "hi", "lo", "hi"]),
        }
    )
    data = from_frame(table, "t")
    assert data.x.tolist() == [[1, 1], [2, 0], [3, 1], [4, 1]]
    assert data.class_names == ("hi", "lo")
    assert data.y.dtype == torch.int64
    assert from_frame(table, "x", features=["b"], task="regression").y.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: it needs a header line"),
        ("\n\n", "is empty"),
        ("a,price\n", "has no rows: only the columns 'a', 'price'"),
        ("a,prize\n1,2\n", "target 'price' is not a column of file.*Did you mean 'prize'.*Its columns: 'a', 'prize'"),
        ("a,city,price\n1,x,2\n2,y,3\n", "columns that are not numbers: 'city'. Encode text.*get_dummies"),
        ("a,price\n1,2\n,3\n,4\n", r"missing values in column 'a' \(2 of 3 rows\)"),
        ("a,price\n1,2\n3,\n", r"target column 'price' of file .* has missing values \(1 of 2 rows\)"),
        ("price\n1\n2\n", "no column but the target"),
        ("a,price\n1,2\n1,2,3,4\n", "cannot be read as CSV: Expected 2 fields in line 3, saw 4"),
        ("a,price\ninf,2\n1,2\n", "x has 1 NaN or infinite.*infinity in row 0, column 'a'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        from_csv(write(tmp_path, text), "price")


def test_files_that_are_no_csv(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.csv"):
        from_csv(tmp_path / "none.csv", "t")
    with pytest.raises(ValueError, match="is a folder"):
        from_csv(tmp_path, "t")
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00\x81,\x90\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        from_csv(path, "t")


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("Price", {}, "target 'Price' is not a column of frame.*Did you mean 'price'"),
        ("price", {"features": ["are"]}, "feature 'are' is not.*'area'"),
        ("price", {"features": ["price"]}, "a feature and the target at once"),
        ("price", {"features": ["area", "area"]}, "'area' is there more than once"),
        ("price", {"features": []}, "no column but the target"),
        ([], {}, "empty list"),
        ("kind", {"features": ["area"], "task": "regression"}, "not numbers: 'kind'"),
        ("price", {"features": ["area"], "task": "counts"}, "must hold counts"),
    ],
)
def test_columns_that_do_not_fit(target, options, message):
    with pytest.raises(ValueError, match=message):
        from_frame(frame(), target, **options)


def test_a_row_number_saved_by_accident_is_reported(tmp_path):
    path = tmp_path / "index.csv"
    frame()[["area", "price"]].to_csv(path)
    with pytest.warns(UserWarning, match="'Unnamed: 0' counts the rows") as record:
        data = from_csv(path, "price")
    assert record[0].filename == __file__
    assert data.feature_names[0] == "Unnamed: 0"
    assert from_csv(path, "price", features=["area"]).feature_names == ("area",)
