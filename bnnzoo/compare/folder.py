"""The folder of a comparison: what is finished, and the settings that it is finished under."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bnnzoo import files
from bnnzoo.compare.method import Method
from bnnzoo.compare.protocol import Protocol
from bnnzoo.data import Dataset
from bnnzoo.training_data import checksum

SETTINGS = "settings.json"
CELLS = "cells"
LOCK = ".lock"
CELL = "cell.json"
RESULT = "result.pt"

# The number of the stages is of what they hold: those of 1 had the noise's scales in units of all rows.
_STAGE, _RESULT = "bnnzoo comparison stage 2", "bnnzoo comparison cell"


@dataclass(frozen=True)
class Folder:
    """What is kept of a comparison: `settings.json`, and a folder for each cell, which is a data set and a method.

    A cell's folder has `cell.json`, which tells its data and method, a file for each finished stage, and `result.pt`
    in their place when all are. Every file is written beside its place and renamed, so that one which is there is
    whole. `.lock` is locked while a comparison is at work, and stays.

    Attributes:
        path: Where it is.
    """

    path: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps other processes from working in it; the lock of a process that died is gone.

        Raises:
            ValueError: If another comparison works in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ValueError(
                f"another comparison is at work in {self.path}: wait until it ends, or give another folder"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def open(self, protocol: Protocol) -> None:
        """Makes the folder, or checks that it is one of the same protocol.

        Raises:
            ValueError: If it holds results of another protocol; says in which settings.
        """
        (self.path / CELLS).mkdir(parents=True, exist_ok=True)
        _same(self.path / SETTINGS, protocol.as_dict(), f"{self.path} holds a comparison by another protocol")

    def open_cell(self, data: Dataset, method: Method) -> Path:
        """Makes a cell's folder, or checks that it is of the same data and method.

        Raises:
            ValueError: If other data or another method of the same name are there; says in what they differ. If the
                folder has cells of another task.
        """
        for other in sorted((self.path / CELLS).glob(f"*/{CELL}")):
            there = _read(other)
            if there.get("task", data.task) != data.task:  # those of earlier versions do not tell their task
                raise ValueError(
                    f"{data.name} is a {data.task}, and {self.path} has a {there['task']}, {there['data']}: "
                    "they need a folder each"
                )
        path = self.path / CELLS / cell_name(data.name, method.name)
        path.mkdir(exist_ok=True)
        what = f"{self.path} has results of {method.name!r} on {data.name!r} already, with other settings"
        _same(path / CELL, _about(data, method), what)
        return path

    def departures(self, protocol: Protocol, data: Dataset, method: Method) -> list[str]:
        """In what the settings of a cell that is there differ from others; empty if they are the same.

        Args:
            protocol: The protocol to compare the folder's with.
            data: The data to compare the cell's with.
            method: The method to compare the cell's with.
        """
        cell = self.path / CELLS / cell_name(data.name, method.name) / CELL
        return [
            *_differences(_read(self.path / SETTINGS), _plain(protocol.as_dict())),
            *_differences(_read(cell), _plain(_about(data, method))),
        ]

    def finished(self) -> list[Path]:
        """Folders of the cells that have a result."""
        return sorted(path.parent for path in (self.path / CELLS).glob(f"*/{RESULT}"))


def cell_name(data: str, method: str) -> str:
    """A folder name for a cell; names that are no file names are told apart by a checksum."""
    plain = [re.sub(r"[^A-Za-z0-9._-]+", "-", name) for name in (data, method)]
    exact = plain == [data, method]
    mark = "" if exact else "-" + hashlib.sha256(f"{data}\n{method}".encode()).hexdigest()[:8]
    return f"{plain[0]}~{plain[1]}{mark}"


def read_stage(cell: Path, name: str) -> dict[str, Any] | None:
    """What a finished stage left, or None."""
    path = cell / f"{name}.pt"
    return files.read(path, _STAGE) if path.exists() else None


def write_stage(cell: Path, name: str, result: Mapping[str, Any]) -> None:
    """Keeps what a stage found."""
    files.write(cell / f"{name}.pt", _STAGE, dict(result))


def read_result(cell: Path) -> dict[str, Any] | None:
    """What a finished cell holds, with what `cell.json` tells of it as `about`; None if it is not finished."""
    if not (cell / RESULT).exists():
        return None
    return {**files.read(cell / RESULT, _RESULT), "about": json.loads((cell / CELL).read_text(encoding="utf-8"))}


def write_result(cell: Path, result: Mapping[str, Any]) -> None:
    """Keeps a finished cell, and drops its stages."""
    files.write(cell / RESULT, _RESULT, dict(result))
    for path in cell.glob("*.pt"):
        if path.name != RESULT:
            path.unlink()


def _about(data: Dataset, method: Method) -> dict[str, Any]:
    """What `cell.json` tells."""
    about = {"data": data.name, "task": data.task, "rows": len(data), "checksum": checksum(data.x, data.y)}
    return {**about, "method": method.describe(), "label": method.label}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a JSON file."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _read(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return settings


def _same(path: Path, settings: Mapping[str, Any], what: str) -> None:
    """Writes settings, or checks that those that are there are the same."""
    if not path.exists():
        files.write_text(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        return
    differing = _differences(_read(path), _plain(settings))
    if differing:
        raise ValueError(f"{what}: {'; '.join(differing)}. Give another folder, or the same settings")


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in dict.fromkeys([*there, *here]):
        if name == "label" or (name == "task" and name not in there):
            continue
        old, new = there.get(name), here.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{name} ")
        elif old != new:
            found.append(f"{prefix}{name} is {old!r} there and {new!r} now")
    return found
