"""Arrays, tensors, frames and lists become checked tensors here, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bnnzoo.data.messages import closest, listing

if TYPE_CHECKING:
    import pandas as pd

Task = Literal["regression", "classification", "counts"]
TASKS: tuple[str, ...] = get_args(Task)

_TEXT_REMEDY = (
    "Encode text as numbers first (for example pandas.get_dummies(frame, columns=[...]) for categories) "
    "or leave the columns out"
)


def check_task(task: str) -> Task:
    """Return ``task`` if it is one of regression, classification and counts.

    Raises:
        ValueError: If it is none of them.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: it must be one of {listing(TASKS)}.{closest(str(task), TASKS)}")
    return task  # type: ignore[return-value]


def is_frame(value: object) -> bool:
    """Say whether ``value`` is a pandas DataFrame."""
    # Who holds a frame has imported pandas; nobody else needs to wait for it.
    return "pandas" in sys.modules and isinstance(value, sys.modules["pandas"].DataFrame)


def is_series(value: object) -> bool:
    """Say whether ``value`` is a pandas Series."""
    return "pandas" in sys.modules and isinstance(value, sys.modules["pandas"].Series)


def check_columns(frame: pd.DataFrame, what: str) -> None:
    """Check that every column of a frame is numeric and complete.

    Raises:
        ValueError: If there are no columns, or some hold text or missing values: they are named.
    """
    import pandas as pd

    if frame.shape[1] == 0:
        raise ValueError(f"{what} has no columns")
    text = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name].dtype)]
    if text:
        raise ValueError(f"{what}: columns that are not numbers: {listing(text)}. {_TEXT_REMEDY}")
    missing = {name: int(count) for name, count in frame.isna().sum().items() if count}
    if missing:
        counts = ", ".join(f"{name!r} ({count} of {len(frame)} rows)" for name, count in list(missing.items())[:12])
        raise ValueError(
            f"{what}: missing values in column {counts}. Fill them (frame.fillna(...)) or drop the rows "
            "(frame.dropna())"
        )


def features(value: Any) -> tuple[Tensor, tuple[str, ...] | None]:
    """Convert inputs to a tensor.

    Torch tensors keep their dtype (bool and bytes become floating point); everything else gets torch's default dtype.

    Args:
        value: Tensor, NumPy array, nested list or DataFrame of numbers, [N, ...].

    Returns:
        The tensor, and the names of its columns if ``value`` is a DataFrame.

    Raises:
        ValueError: If it is not numeric, has rows of different lengths, or has one dimension only.
    """
    names = None
    if is_frame(value):
        check_columns(value, "x")
        names = tuple(str(name) for name in value.columns)
        value = value.to_numpy(dtype=np.float64)
    x = _tensor(value, "x")
    if not isinstance(value, Tensor) or x.dtype in (torch.bool, torch.uint8):
        x = x.to(torch.get_default_dtype())
    if x.numel() == 0 and x.ndim == 1:
        raise ValueError("x is empty: there are no rows")
    if x.ndim < 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: it needs a row for each example and at least one more dimension. "
            "A single feature is x.reshape(-1, 1), a single example x.reshape(1, -1)"
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"x has shape {tuple(x.shape)}: there are no features")
    return x, names


def targets(value: Any, task: Task | None) -> tuple[Tensor, Task, str | None, tuple[str, ...] | None]:
    """Convert targets to a tensor: int64 labels for classification, floating point otherwise.

    Args:
        value: Tensor, NumPy array, list, Series or DataFrame, [N], [N, 1] (becomes [N]) or [N, C]; text is taken as
            class names.
        task: The task, or None to infer it: integer, boolean and text targets are class labels, unless integers are
            negative; everything else is regression.

    Returns:
        The targets, the task, the name of the target if ``value`` has one, and the class names if ``value`` is text.

    Raises:
        ValueError: If the values do not fit the task.
    """
    name: str | None = None
    class_names: tuple[str, ...] | None = None
    if is_series(value):
        name = None if value.name is None else str(value.name)
        _check_missing_targets(value)
        value = value.to_numpy()
    elif is_frame(value):
        if value.shape[1] == 1:
            return targets(value.iloc[:, 0], task)
        check_columns(value, "y")
        value = value.to_numpy(dtype=np.float64)
    if not isinstance(value, Tensor):
        value = _array(value, "y")
        if value.dtype.kind in "US" or (value.dtype.kind == "O" and _is_text(value)):
            if task not in (None, "classification"):
                raise ValueError(
                    f"y holds text ({listing(value.ravel()[:3])}, ...), which does not fit the task {task}"
                )
            value, class_names = encode_labels(value)
    y = _tensor(value, "y")
    if y.ndim == 0:
        raise ValueError("y is a single number: it needs one entry for each row of x")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y.squeeze(1)
    if task is None:
        whole = not y.is_floating_point() and (y.numel() == 0 or y.dtype == torch.bool or int(y.min()) >= 0)
        task = "classification" if whole else "regression"
    if task == "classification":
        y = _labels(y)
    elif not (isinstance(value, Tensor) and y.is_floating_point()):
        y = y.to(torch.get_default_dtype())
    if task == "counts":
        bad = (y < 0) | (y != y.round())
        if bool(bad.any()):
            raise ValueError(
                f"y must hold counts (0, 1, 2, ...), but {int(bad.sum())} of {y.numel()} values are not, the first of "
                f"them {y[bad][0].item():g}"
            )
    return y, task, name, class_names


def encode_labels(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number the distinct values of an array 0, 1, ... in sorted order.

    Returns:
        The numbers (int64, same shape), and the distinct values as text.
    """
    try:
        distinct, codes = np.unique(values, return_inverse=True)
    except TypeError as error:
        raise ValueError(
            "y mixes text with other values (or with missing ones): class names must all be text"
        ) from error
    return codes.reshape(values.shape).astype(np.int64), tuple(str(value) for value in distinct)


def check_finite(values: Tensor, what: str, names: Sequence[str] | None = None) -> None:
    """Check that there is no NaN and no infinity.

    Args:
        values: What is checked, [N, ...].
        what: What the values are called in the error.
        names: Names of the columns of ``values``, for the error.

    Raises:
        ValueError: Saying how many values are bad, and where the first is.
    """
    if not values.is_floating_point() or bool(torch.isfinite(values.sum())):
        return
    bad = ~torch.isfinite(values)
    if not bool(bad.any()):  # the sum overflowed
        return
    first = bad.nonzero()[0].tolist()
    where = f"row {first[0]}"
    if len(first) == 2:
        where += f", column {names[first[1]]!r}" if names else f", column {first[1]}"
    elif len(first) > 2:
        where += f", position {tuple(first[1:])}"
    kind = "NaN" if bool(torch.isnan(values[tuple(first)])) else "infinity"
    raise ValueError(
        f"{what} has {int(bad.sum())} NaN or infinite values of {values.numel()} (dtype {values.dtype}), the first "
        f"of them {kind} in {where}. Drop or fill these rows first"
    )


def _labels(y: Tensor) -> Tensor:
    check_finite(y, "y")
    labels = y.to(torch.int64)
    if y.is_floating_point() and not bool((labels == y).all()):
        raise ValueError(
            f"y must hold class labels (0, 1, 2, ...), but it has values such as {y[labels != y][0].item():g}. "
            "For continuous targets the task is 'regression'"
        )
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(f"y must hold class labels 0, 1, 2, ..., but its smallest label is {int(labels.min())}")
    return labels


def _check_missing_targets(series: pd.Series) -> None:
    missing = int(series.isna().sum())
    if missing:
        label = "" if series.name is None else f" in column {series.name!r}"
        raise ValueError(f"y: missing values{label} ({missing} of {len(series)} rows). Drop these rows first")


def _is_text(array: np.ndarray) -> bool:
    return any(isinstance(item, str) for item in array.ravel())


def _array(value: Any, what: str) -> np.ndarray:
    if isinstance(value, list | tuple) and value and all(isinstance(item, Tensor) for item in value):
        value = [item.detach().cpu().numpy() for item in value]
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{what} has rows of different lengths: it is not one array of numbers") from error


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise ValueError(f"{what} is a sparse tensor ({value.layout}): pass {what}.to_dense()")
        tensor = value.detach()
    else:
        array = _array(value, what)
        if array.dtype.kind == "O":
            try:
                array = array.astype(np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{what} holds values that are not numbers. {_TEXT_REMEDY}") from error
        if array.dtype.kind not in "biufc":
            raise ValueError(f"{what} has dtype {array.dtype}, which is not a number. {_TEXT_REMEDY}")
        if array.dtype.kind == "u" and array.dtype != np.uint8:
            array = array.astype(np.int64)  # torch computes little in the other unsigned dtypes
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        tensor = torch.from_numpy(np.array(array, order="C", dtype=array.dtype.newbyteorder("=")))
    if tensor.is_complex():
        raise ValueError(f"{what} is complex: only real numbers can be used")
    return tensor
