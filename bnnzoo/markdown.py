"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    r"""A Markdown table; numbers must come formatted, and a | in a text is written as \|.

    Args:
        header: Column titles.
        rows: As many cells each as the header has.
    """

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(escaped(str(cell)) for cell in cells) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *map(line, rows)])


def escaped(text: str) -> str:
    r"""A text that can stand in a table: \| for |.

    Args:
        text: Any text of one line.
    """
    return text.replace("|", "\\|")
