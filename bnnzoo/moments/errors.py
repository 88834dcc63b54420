"""Where in a network an operation without a rule is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from bnnzoo.moments.value import NoRuleError


@contextmanager
def located(network: nn.Module) -> Iterator[None]:
    """Let a `NoRuleError` from inside say which module of the network raised it."""
    try:
        yield
    except NoRuleError as error:
        raise NoRuleError(f"{error} (in {_place(network, error)})") from error


def _place(network: nn.Module, error: BaseException) -> str:
    """The innermost module whose code was running."""
    paths = {module: path for path, module in network.named_modules()}
    place, trace = network, error.__traceback__
    while trace is not None:
        running = trace.tb_frame.f_locals.get("self")
        if isinstance(running, nn.Module) and running in paths:
            place = running
        trace = trace.tb_next
    return f"{paths[place]!r}, a {type(place).__name__}" if paths[place] else f"the network, a {type(place).__name__}"
