"""Wording shared by the errors of the data package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, options: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the option nearest to a mistyped name, or an empty string.

    Args:
        name: What was given.
        options: The names that would have been right.
    """
    by_lower = {option.lower(): option for option in options}
    match = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return f" Did you mean {by_lower[match[0]]!r}?" if match else ""


def listing(items: Iterable[object], limit: int = 12) -> str:
    """Return a comma-separated list of the items' reprs, cut after ``limit`` of them."""
    items = list(items)
    text = ", ".join(repr(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"
