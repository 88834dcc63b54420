"""What operations without a rule do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bnnzoo.moments.value import NoRuleError


def fall_back(func: Callable, args: Any, kwargs: Any) -> Any:
    """Apply an operation that has no rule as the options say (`bnnzoo.moments.options`)."""
    name = getattr(func, "__qualname__", None) or getattr(func, "__name__", repr(func))
    raise NoRuleError(
        f"moments have no rule for the operation {name}: give it one (bnnzoo.moments.table), or choose "
        "fallback='linearize', 'quadrature' or 'sample'"
    )
