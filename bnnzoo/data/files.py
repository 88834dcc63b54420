"""Reading and writing the files of data sets: npz, and CIFAR-10 as a zip of JPEGs."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import platformdirs

from bnnzoo.data.dataset import Dataset
from bnnzoo.data.registry import Entry

Arrays = dict[str, np.ndarray]


def cache_dir() -> Path:
    """Return the folder that downloaded data are kept in, the user cache of the system; it may not exist yet."""
    return Path(platformdirs.user_cache_dir("bnnzoo")) / "data"


def read_npz(path: Path) -> Arrays:
    """Read all arrays of an npz file; pickled objects are never loaded.

    Raises:
        ValueError: If the file is damaged, not an npz file, or holds Python objects.
    """
    try:
        # np.load leaves a file that it opens itself open when the zip is damaged.
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            with file:
                return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise ValueError(f"{str(path)!r} is not a readable npz file of plain arrays: {error}") from error


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], compress: bool = True) -> None:
    """Write an npz file beside its place and rename it, so that nobody ever sees half of it.

    A cache that cannot be written costs time and nothing else: it is a warning.

    Args:
        path: The file; its folder is made.
        arrays: What it holds.
        compress: Compress it.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            save = np.savez_compressed if compress else np.savez
            save(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except OSError as error:
        warnings.warn(f"the data set was not cached in {str(path)!r}: {error}", stacklevel=2)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def read_image_zip(path: Path, entry: Entry) -> Arrays:
    """Decode ``train/<class>/*.jpg`` and ``test/<class>/*.jpg`` (or png) once, and cache the pixels.

    Rows are in an order that is fixed and mixes the classes: in that of the folders, the first rows would be one class.

    Args:
        path: The zip file.
        entry: The data set: its class names are the folders' names, in the order of their labels.

    Returns:
        ``x_train`` uint8 [N, H, W, C], ``y_train``, ``x_test``, ``y_test``.

    Raises:
        ValueError: If it is not a zip file of such a layout.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            digest = hashlib.sha256(b"mixed")
            for member in sorted(archive.infolist(), key=lambda member: member.filename):
                digest.update(f"{member.filename} {member.CRC}\n".encode())
            # The name tells the archive's contents and the order of rows, so another archive is decoded anew.
            cached = cache_dir() / f"{entry.name}-{digest.hexdigest()[:12]}.npz"
            if cached.exists():
                return read_npz(cached)
            arrays = _decode(archive, path, entry)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{str(path)!r} is not a readable zip file: {error}") from error
    write_npz(cached, arrays, compress=False)
    return arrays


def _decode(archive: zipfile.ZipFile, path: Path, entry: Entry) -> Arrays:
    try:
        from PIL import Image
    except ImportError as error:  # comes with matplotlib
        raise ImportError(f"reading {str(path)!r} needs Pillow: pip install pillow") from error
    height, width = entry.input_shape[1:]
    labels = {name: label for label, name in enumerate(entry.class_names or ())}
    arrays: Arrays = {}
    for part in ("train", "test"):
        names = (name for name in archive.namelist() if name.startswith(f"{part}/"))
        members = sorted(
            (name for name in names if name.lower().endswith((".jpg", ".jpeg", ".png"))),
            key=lambda name: hashlib.sha256(name.encode()).digest(),
        )
        if not members:
            raise ValueError(f"{str(path)!r} has no images {part}/<class>/*.jpg")
        pixels = np.empty((len(members), height, width, 3), dtype=np.uint8)
        targets = np.empty(len(members), dtype=np.uint8)
        for row, name in enumerate(members):
            folder = name.split("/")[1]
            if folder not in labels:
                raise ValueError(f"{str(path)!r}: {name!r} is not in the folder of a class ({', '.join(labels)})")
            with Image.open(io.BytesIO(archive.read(name))) as image:
                if image.size != (width, height):
                    raise ValueError(f"{str(path)!r}: {name!r} has {image.size} pixels, not {(width, height)}")
                pixels[row] = np.asarray(image.convert("RGB"))
            targets[row] = labels[folder]
        arrays[f"x_{part}"], arrays[f"y_{part}"] = pixels, targets
    return arrays


def build(entry: Entry, arrays: Arrays, path: Path | str) -> Dataset:
    """Make the data set from the arrays of its file.

    Args:
        entry: What it should be.
        arrays: ``x`` and ``y`` of a table (and ``feature_names``, where columns come in another order or choice);
            ``x_train``, ``y_train``, ``x_test`` and ``y_test`` of images, where one of the two parts may be absent.
        path: Where they come from, for errors.

    Raises:
        ValueError: If arrays are absent, or of other shapes or types.
    """
    needed = {"table": ({"x", "y"},), "images": ({"x_train", "y_train"}, {"x_test", "y_test"})}[entry.kind]
    parts = [part for part in needed if part <= set(arrays)]
    if not parts:
        raise ValueError(f"{str(path)!r} holds the arrays {sorted(arrays)}: it should hold {expected(entry)}")
    try:
        if entry.kind == "table":
            names = arrays.get("feature_names")
            return Dataset(
                arrays["x"],
                arrays["y"],
                name=entry.name,
                task=entry.task,
                feature_names=entry.feature_names if names is None else [str(name) for name in names],
                target_name=entry.target_name,
                description=entry.description,
            )
        sets = {key: _images(entry, arrays, key) for key in ("train", "test") if f"x_{key}" in arrays}
        if "train" in sets and "test" in sets:
            sets["train"].test = sets["test"]
        return sets.get("train", sets.get("test"))  # type: ignore[return-value]
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}. It should hold {expected(entry)}") from error


def expected(entry: Entry) -> str:
    """Say which arrays the file of a data set holds."""
    if entry.kind == "table":
        rows, columns = entry.rows, entry.input_shape[0]
        return f"x [{rows}, {columns}] and y [{rows}], float64"
    channels, *size = entry.input_shape
    shape = ", ".join(str(length) for length in (*size, *([channels] if channels > 1 else [])))
    if not entry.test_rows:
        return f"x_test uint8 [{entry.rows}, {shape}] and y_test [{entry.rows}]"
    return (
        f"x_train uint8 [{entry.rows}, {shape}], y_train [{entry.rows}], x_test uint8 [{entry.test_rows}, {shape}] and "
        f"y_test [{entry.test_rows}]"
    )


def _images(entry: Entry, arrays: Arrays, key: str) -> Dataset:
    dataset = Dataset.from_images(
        arrays[f"x_{key}"],
        arrays[f"y_{key}"],
        name=entry.name,
        task=entry.task,
        target_name=entry.target_name,
        class_names=entry.class_names,
        description=entry.description,
    )
    if dataset.input_shape != entry.input_shape:
        raise ValueError(f"x_{key} has images of shape {dataset.input_shape}, not {entry.input_shape}")
    return dataset
