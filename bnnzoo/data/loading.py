"""`load`: a known data set by name, from a file, the cache or a download."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from bnnzoo.data import files
from bnnzoo.data.dataset import Dataset
from bnnzoo.data.download import DownloadError, download
from bnnzoo.data.registry import Entry, info

VARIABLE = "BNNZOO_DATA"
"""The environment variable that names a folder of data files."""

_logger = logging.getLogger(__name__)


def load(name: str, path: str | Path | None = None) -> Dataset:
    """Load a known data set.

    Toys and embedded data need no file. A file ``<name>.npz`` is looked for in the folder ``$BNNZOO_DATA`` and its
    subfolder ``uci``, then in the user cache; then it is downloaded from OpenML and cached. CIFAR-10 may also be a
    ``cifar10.zip`` of JPEG images, which is decoded once.

    Args:
        name: One of :func:`bnnzoo.data.names`.
        path: A file, or a folder that is looked in instead of all these places; nothing is downloaded then.

    Returns:
        The data set in own units, without a standardization. MNIST, Fashion-MNIST and CIFAR-10 carry their official
        test set as ``.test``; images are [N, C, H, W] in [0, 1].

    Raises:
        ValueError: If the name is unknown (the closest one is suggested), or the file does not hold what it should.
        FileNotFoundError: If there is no file and no way to download it; it says how to provide the file.
    """
    entry = info(name)
    if entry.build is not None:
        if path is not None:
            raise ValueError(f"data set {entry.name!r} is {entry.kind}: it is not read from a path ({str(path)!r})")
        dataset = entry.build()
        dataset.description = entry.description
        return dataset
    if path is not None:
        return _from_path(entry, Path(path))
    folder = os.environ.get(VARIABLE)
    if folder:
        found = _find(entry, Path(folder))
        if found is not None:
            return _read(entry, found)
    cached = files.cache_dir() / f"{entry.name}.npz"
    if cached.is_file():
        return _read(entry, cached)
    try:
        if entry.openml is not None:
            _logger.info("downloading data set %r from OpenML to %s", entry.name, cached)
        arrays = download(entry)
    except DownloadError as error:
        variable = f"${VARIABLE} ({folder})" if folder else f"${VARIABLE} (not set)"
        raise FileNotFoundError(
            f"data set {entry.name!r} is not on this machine and cannot be downloaded: {error}. "
            f"Looked for {entry.name}.npz in {variable} and in {files.cache_dir()}. {_remedy(entry)}"
        ) from error
    dataset = files.build(entry, arrays, "OpenML")
    files.write_npz(cached, arrays)
    return dataset


def _from_path(entry: Entry, path: Path) -> Dataset:
    if path.is_file():
        return _read(entry, path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {str(path)!r} to read data set {entry.name!r} from")
    found = _find(entry, path)
    if found is None:
        raise FileNotFoundError(f"folder {str(path)!r} holds no {entry.name}.npz. {_remedy(entry)}")
    return _read(entry, found)


def _find(entry: Entry, folder: Path) -> Path | None:
    """Look for the file of a data set in a folder and its subfolder uci; npz goes before zip."""
    endings = (".npz", ".zip") if _may_be_zip(entry) else (".npz",)
    places = [place / f"{entry.name}{ending}" for ending in endings for place in (folder, folder / "uci")]
    return next((place for place in places if place.is_file()), None)


def _read(entry: Entry, path: Path) -> Dataset:
    if path.suffix == ".zip" and _may_be_zip(entry):
        return files.build(entry, files.read_image_zip(path, entry), path)
    return files.build(entry, files.read_npz(path), path)


def _may_be_zip(entry: Entry) -> bool:
    return entry.kind == "images" and entry.input_shape[0] == 3


def _remedy(entry: Entry) -> str:
    archive = f" (or {entry.name}.zip of train/<class>/*.jpg and test/<class>/*.jpg)" if _may_be_zip(entry) else ""
    return (
        f"To provide it, save a file {entry.name}.npz with numpy.savez holding {files.expected(entry)}{archive}, in a "
        f"folder that ${VARIABLE} names, or pass path="
    )
