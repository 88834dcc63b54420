"""Downloads from openml.org through scikit-learn's client."""

from __future__ import annotations

import tempfile
import warnings
from http.client import HTTPException
from typing import Any

import numpy as np

from bnnzoo.data.files import Arrays
from bnnzoo.data.registry import Entry, OpenML


class DownloadError(Exception):
    """A data set could not be downloaded: there is no network, or the server does not have it."""


def download(entry: Entry) -> Arrays:
    """Fetch a data set from OpenML, and check that it is the one that was meant.

    Args:
        entry: A table or a set of images that is on OpenML.

    Returns:
        The arrays of its npz file: ``x``, ``y`` and ``feature_names`` of a table, ``x_train``, ``y_train``, ``x_test``
        and ``y_test`` of images.

    Raises:
        DownloadError: If it cannot be had.
        ValueError: If what came is not of the size, or not in the order, of the data set.
    """
    if entry.openml is None:
        raise DownloadError("OpenML is not known to have it")
    bunch = _fetch(entry.openml, as_frame=entry.kind == "table")
    return _table(entry, bunch) if entry.kind == "table" else _images(entry, bunch)


def _fetch(place: OpenML, as_frame: bool) -> Any:
    from sklearn.datasets import fetch_openml

    which: dict[str, Any] = (
        {"data_id": place.data_id} if place.data_id is not None else {"name": place.name, "version": place.version}
    )
    # Our own cache keeps the result, so that of scikit-learn would only double it.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client warns of each retry; only the outcome matters here
        try:
            return fetch_openml(**which, as_frame=as_frame, parser="auto", cache=False, data_home=folder, n_retries=1)
        except (OSError, HTTPException) as error:  # urllib's errors, timeouts and refused connections are OSErrors
            raise DownloadError(f"OpenML cannot be reached: {error}") from error
        except ValueError as error:
            raise DownloadError(f"OpenML does not give it: {error}") from error


def _table(entry: Entry, bunch: Any) -> Arrays:
    import pandas as pd

    assert entry.openml is not None
    frame = bunch.data.drop(columns=[name for name in entry.openml.drop if name in bunch.data.columns])
    # Numbers that OpenML calls nominal come as text categories, and would be coded by rank without this.
    x = np.stack([pd.to_numeric(frame[name].astype(str)).to_numpy(np.float64) for name in frame.columns], axis=1)
    y = pd.to_numeric(bunch.target.astype(str)).to_numpy(np.float64)
    if x.shape != (entry.rows, *entry.input_shape) or y.shape != (entry.rows,):
        raise ValueError(
            f"OpenML's {entry.openml.name!r} has {x.shape[0]} rows and {x.shape[1]} columns, but {entry.name!r} has "
            f"{entry.rows} and {entry.input_shape[0]}"
        )
    return {"x": x, "y": y, "feature_names": np.array([str(name) for name in frame.columns])}


def _images(entry: Entry, bunch: Any) -> Arrays:
    assert entry.openml is not None
    pixels = np.asarray(bunch.data)
    labels = np.asarray(bunch.target).astype(np.int64)
    rows = entry.rows + entry.test_rows
    if pixels.shape != (rows, entry.num_features) or labels.shape != (rows,):
        raise ValueError(f"OpenML's {entry.openml.name!r} has shape {pixels.shape}, not {(rows, entry.num_features)}")
    if pixels.min() < 0 or pixels.max() > 255 or pixels.max() <= 1:
        raise ValueError(f"OpenML's {entry.openml.name!r} has pixels from {pixels.min()} to {pixels.max()}")
    images = pixels.astype(np.uint8).reshape(rows, *entry.input_shape)
    images = images[:, 0] if entry.input_shape[0] == 1 else images.transpose(0, 2, 3, 1)
    counts = tuple(np.bincount(labels[entry.rows :], minlength=len(entry.test_counts)).tolist())
    if counts != entry.test_counts:
        raise ValueError(
            f"OpenML's {entry.openml.name!r} is not in the official order: its last {entry.test_rows} rows have "
            f"{counts} of each class, not {entry.test_counts}"
        )
    return {
        "x_train": images[: entry.rows],
        "y_train": labels[: entry.rows].astype(np.uint8),
        "x_test": images[entry.rows :],
        "y_test": labels[entry.rows :].astype(np.uint8),
    }
