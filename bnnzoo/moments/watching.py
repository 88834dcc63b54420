"""Listen to the modules of a network while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

_unheard: ContextVar[bool] = ContextVar("unheard", default=False)


def passing_unheard() -> bool:
    """Whether the pass is one of a network's own, see `unheard`."""
    return _unheard.get()


@contextmanager
def unheard() -> Iterator[None]:
    """A pass of a network's own inside, that is no call of its layers."""
    token = _unheard.set(True)
    try:
        yield
    finally:
        _unheard.reset(token)


@contextmanager
def watching(
    network: nn.Module, listen: Callable[[str, nn.Module, Any], Any], containers: bool = False
) -> Iterator[None]:
    """Hear of every call of a network's modules inside.

    Args:
        network: The network.
        listen: Called as `listen(name, module, output)` when a module has run; what it returns, unless that is None,
            takes the output's place. Names are module paths; further calls in one pass are `act#2`, `act#3`, ...
        containers: Hear of modules with children too, not of leaves alone.
    """
    calls: dict[str, int] = {}

    def hook_of(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if _unheard.get():
                return None
            calls[path] = calls.get(path, 0) + 1
            return listen(path if calls[path] == 1 else f"{path}#{calls[path]}", module, output)

        return hook

    # each pass counts its own calls
    handles = [network.register_forward_pre_hook(lambda module, args: calls.clear())]
    for path, module in network.named_modules():
        if containers or not any(module.children()):
            handles.append(module.register_forward_hook(hook_of(path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
