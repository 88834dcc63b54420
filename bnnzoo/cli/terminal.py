"""What the commands share: examples in their help, the console, checks of files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console

from bnnzoo.cli.options import bad


def examples(*lines: str) -> str:
    """The epilog of a command's help.

    Args:
        *lines: Commands.
    """
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"$ {line}" for line in lines)


def console(quiet: bool = False) -> Console:
    """Where a command reports.

    Args:
        quiet: Print nothing.
    """
    # Not on a terminal rich takes 80 columns: enough for nobody's scores, and lines in files may be long.
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    return Console(quiet=quiet, width=wide)


def check_file(path: Path, overwrite: bool = True) -> None:
    """Checks, before any work, that a file can be written.

    Args:
        path: The file of `--out`.
        overwrite: Whether it may exist.
    """
    if path.is_dir():
        raise bad("--out", f"{path} is a folder: give a file")
    if path.exists() and not overwrite:
        raise bad("--out", f"{path} exists: give another file, or --overwrite to replace it")
    check_parent(path)


def check_parent(path: Path) -> None:
    """Checks, before any work, that something can be written under this path.

    Args:
        path: Of a file, or of a folder that may not exist yet.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise bad("--out", f"there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise bad("--out", f"no permission to write in {folder}")
