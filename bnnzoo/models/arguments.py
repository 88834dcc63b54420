"""Checks of what the networks are given; each returns the value as a plain number, so that a file can hold it."""

from collections.abc import Sequence

import numpy as np


def whole(owner: str, name: str, value: object, minimum: int = 1) -> int:
    """Checks a count.

    Args:
        owner: Who asks, for the message.
        name: The argument's name, for the message.
        value: What was given.
        minimum: The smallest count allowed.

    Returns:
        The value as an `int` (NumPy integers pass).

    Raises:
        ValueError: The value is no whole number or is below `minimum`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < minimum:
        raise ValueError(f"{owner}: {name} must be a whole number of at least {minimum}; given: {value!r}")
    return value.__index__()


def wholes(owner: str, name: str, value: object, what: str, length: int | None = None) -> tuple[int, ...]:
    """Checks a sequence of counts, each at least 1.

    Args:
        owner: Who asks, for the message.
        name: The argument's name, for the message.
        value: What was given.
        what: What the argument is, with an example, for the message.
        length: How many counts there must be; None allows any number.

    Returns:
        The counts.

    Raises:
        ValueError: The value is no sequence, has another length, or an element is no count.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or (length is not None and len(value) != length):
        raise ValueError(f"{owner}: {name} must be {what}; given: {value!r}")
    return tuple(whole(owner, f"{name}[{i}]", size) for i, size in enumerate(value))


def fraction(owner: str, name: str, value: object) -> float:
    """Checks a number in [0, 1), such as a dropout rate.

    Args:
        owner: Who asks, for the message.
        name: The argument's name, for the message.
        value: What was given.

    Returns:
        The value as a `float`.

    Raises:
        ValueError: The value is no number, below 0, or not below 1.
    """
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not (number and 0 <= value < 1):  # type: ignore[operator]
        raise ValueError(f"{owner}: {name} must be a number from 0 to below 1; given: {value!r}")
    return float(value)  # type: ignore[arg-type]


def flag(owner: str, name: str, value: object) -> bool:
    """Checks a yes or no.

    Args:
        owner: Who asks, for the message.
        name: The argument's name, for the message.
        value: What was given.

    Returns:
        The value as a `bool`.

    Raises:
        ValueError: The value is neither True nor False.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{owner}: {name} must be True or False; given: {value!r}")
    return bool(value)
