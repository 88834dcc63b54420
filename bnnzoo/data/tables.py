"""Data sets from CSV files and pandas DataFrames."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bnnzoo.data.convert import check_columns, check_task, encode_labels
from bnnzoo.data.dataset import Dataset
from bnnzoo.data.messages import closest, listing

if TYPE_CHECKING:
    import pandas as pd

MAX_CLASSES = 20
"""Up to this many distinct integers are taken for class labels where no task is given."""


def from_csv(
    path: str | Path,
    target: str | Sequence[str],
    *,
    task: str | None = None,
    features: Sequence[str] | None = None,
    name: str | None = None,
    separator: str | None = None,
) -> Dataset:
    """Read a data set from a CSV file with a header line.

    Args:
        path: The file; compressed files (``.csv.gz``, ...) are read as well.
        target: Name of the target column, or names of several for a regression with several outputs.
        task: ``"regression"``, ``"classification"`` or ``"counts"``; None infers it, see :func:`from_frame`.
        features: Names of the columns to use as inputs; None uses all but the target.
        name: What the data set is called; the file's name without its ending by default.
        separator: What separates columns; None finds out whether it is a comma, a semicolon or a tab.

    Returns:
        The data set, in the file's units and the file's order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty or no CSV, a column does not exist (the closest name is suggested), columns
            hold text or values are missing (all are named).
    """
    import pandas as pd

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: give the path of one CSV file")
    try:
        frame = pd.read_csv(path, sep=separator or ",")
        if separator is None and frame.shape[1] == 1:
            other = next((mark for mark in ";\t" if mark in str(frame.columns[0])), None)
            if other is not None:
                frame = pd.read_csv(path, sep=other)
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{str(path)!r} is empty: it needs a header line with column names, and rows") from error
    except pd.errors.ParserError as error:
        reason = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        raise ValueError(f"{str(path)!r} cannot be read as CSV: {reason}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: is it a CSV file? ({error})") from error
    return _build(frame, target, task, features, name or path.name.split(".")[0], f"file {str(path)!r}")


def from_frame(
    frame: pd.DataFrame,
    target: str | Sequence[str],
    *,
    task: str | None = None,
    features: Sequence[str] | None = None,
    name: str = "frame",
) -> Dataset:
    """Make a data set from a pandas DataFrame.

    Args:
        frame: The table, one row for each example.
        target: Name of the target column, or names of several for a regression with several outputs.
        task: ``"regression"``, ``"classification"`` or ``"counts"``. None infers it from the target: text and booleans
            are classes, and so are integers with at most 20 distinct values, each of them twice in the column on
            average; everything else is a regression. Classes are numbered in sorted order.
        features: Names of the columns to use as inputs; None uses all but the target.
        name: What the data set is called.

    Returns:
        The data set, in the frame's units and order.

    Raises:
        ValueError: If the frame has no rows, a column does not exist (the closest name is suggested), columns hold text
            or values are missing (all are named).
    """
    return _build(frame, target, task, features, name, "frame")


def _build(
    frame: pd.DataFrame,
    target: str | Sequence[str],
    task: str | None,
    features: Sequence[str] | None,
    name: str,
    where: str,
) -> Dataset:
    if task is not None:
        check_task(task)
    if len(frame) == 0:
        raise ValueError(f"{where} has no rows: only the columns {listing(frame.columns)}")
    chosen = [target] if isinstance(target, str) or not isinstance(target, Sequence) else list(target)
    if not chosen:
        raise ValueError("target is an empty list: name at least one column")
    _check_names(frame, chosen, where, "target")
    if features is None:
        inputs = [column for column in frame.columns if column not in chosen]
    else:
        inputs = [features] if isinstance(features, str) else list(features)
        _check_names(frame, inputs, where, "feature")
        both = [column for column in inputs if column in chosen]
        if both:
            raise ValueError(f"{listing(both)} cannot be a feature and the target at once")
    if not inputs:
        raise ValueError(f"{where} has no column but the target {listing(chosen)}: there is nothing to predict it from")
    check_columns(frame[inputs], f"x ({where})")
    _warn_of_index(frame, inputs)
    if len(chosen) > 1:
        if task == "classification":
            raise ValueError(f"task 'classification' has one target, but {len(chosen)} are given: {listing(chosen)}")
        return Dataset(frame[inputs], frame[chosen], task=task or "regression", name=name)
    y = frame[chosen[0]]
    missing = int(y.isna().sum())
    if missing:
        raise ValueError(
            f"target column {chosen[0]!r} of {where} has missing values ({missing} of {len(y)} rows). "
            "Drop these rows first"
        )
    task = task or _infer(y)
    if task == "classification":
        values = y.to_numpy()
        if values.dtype.kind == "O":
            values = values.astype(str)
        labels, class_names = encode_labels(values)
        return Dataset(frame[inputs], labels, task=task, name=name, target_name=str(chosen[0]), class_names=class_names)
    check_columns(frame[chosen], f"y ({where}, task {task!r})")
    return Dataset(frame[inputs], y.to_numpy(dtype=np.float64), task=task, name=name, target_name=str(chosen[0]))


def _infer(y: pd.Series) -> str:
    import pandas as pd

    if pd.api.types.is_bool_dtype(y.dtype) or not pd.api.types.is_numeric_dtype(y.dtype):
        return "classification"
    if pd.api.types.is_integer_dtype(y.dtype) and y.nunique() <= min(MAX_CLASSES, len(y) // 2):
        return "classification"
    return "regression"


def _check_names(frame: pd.DataFrame, names: Sequence[object], where: str, what: str) -> None:
    columns = list(frame.columns)
    for name in names:
        if name not in columns:
            hint = closest(str(name), [str(column) for column in columns])
            raise ValueError(f"{what} {name!r} is not a column of {where}.{hint} Its columns: {listing(columns)}")
    repeated = [name for name in dict.fromkeys(names) if list(names).count(name) > 1 or columns.count(name) > 1]
    if repeated:
        raise ValueError(f"{what} {listing(repeated)} is there more than once in {where}")


def _warn_of_index(frame: pd.DataFrame, inputs: Sequence[object]) -> None:
    first = inputs[0]
    if str(first).startswith("Unnamed: ") and np.array_equal(frame[first].to_numpy(), np.arange(len(frame))):
        warnings.warn(
            f"column {first!r} counts the rows and is used as a feature: leave it out with features=[...], or write "
            "the file with index=False",
            stacklevel=4,
        )
