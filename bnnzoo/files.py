"""Files of tensors and plain values, and texts, written whole or not at all; read without running code from them."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

#: Version of the files' layout; a file of a later one is refused.
VERSION = 1


def write(path: Path, format: str, content: dict[str, Any]) -> None:
    """Write a file beside its final place and rename it: an interrupted or failed write leaves the old one.

    Args:
        path: The file; its folder must exist.
        format: What kind of file it is, checked by `read`.
        content: Tensors, numbers, strings, lists and dicts of them.

    Raises:
        OSError: If the folder is missing or not writable, or the disk full; nothing half-written is left.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    with _replacing(path) as file:
        try:
            torch.save({"format": format, "version": VERSION, **content}, file)
        except RuntimeError as error:  # torch's zip writer reports a full disk so, in terms of its own
            raise OSError(f"cannot write {path}: {error.__context__ or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its final place and rename it: nothing half-written stays behind.

    Args:
        path: The file; its folder must exist.
        text: Its content, written as UTF-8.

    Raises:
        OSError: If the folder is missing or not writable, or the disk full.
    """
    with _replacing(Path(path)) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` once it is written whole."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: Path, format: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a file that `write` wrote.

    Args:
        path: The file.
        format: What kind of file is expected.
        device: Where its tensors go.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, of another kind, or of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    torch.empty(0, device=device)  # a device that is not there is no damage of the file
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums that it writes
            broken = archive.testzip()
        if broken is not None:
            raise ValueError(f"the checksum of its part {broken!r} is wrong")
        content = torch.load(path, map_location=device, weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # damaged bytes raise just about anything
        raise ValueError(f"{path} is not a {format} file, or is damaged: {_first_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != format:
        found = content.get("format") if isinstance(content, dict) else None
        raise ValueError(f"{path} is not a {format} file" + (f" but a {found} file" if found else ""))
    if not isinstance(content.get("version"), int):
        raise ValueError(f"{path} is damaged: it does not say what version it is")
    if content["version"] > VERSION:
        raise ValueError(
            f"{path} has layout version {content['version']}, this bnnzoo reads up to {VERSION}: update bnnzoo"
        )
    return content


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
