"""What a whole Pyro program needs to run under `torch.func.vmap`: chains, particles and draws are mapped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bnnzoo._mapped_ops import MAPPED_OPS


class Pair(nn.Module):
    """A model and a guide as one module, for `torch.func.functional_call`: both see one set of parameters.

    Calling it applies a function: `pair(fn, *args)` is `fn(model, guide, *args)`.
    """

    model: Any
    guide: Any

    def __init__(self, model: nn.Module, guide: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.guide = guide

    def copy(self) -> Pair:
        """A deep copy whose guide belongs to the copied model."""
        memo: dict[int, Any] = {}
        model = copy.deepcopy(self.model, memo)
        # Copying makes Pyro's AutoGuides forget their model (in the handler that initializes it), the original too.
        autos = [part for part in self.guide.modules() if isinstance(part, AutoGuide)]
        held = [(part._model, part.master) for part in autos]
        # Their record of the model's first run is only read, and of learned parameters it holds a graph.
        memo |= {id(part.prototype_trace): part.prototype_trace for part in autos}
        guide = copy.deepcopy(self.guide, memo)
        twins = [part for part in guide.modules() if isinstance(part, AutoGuide)]
        for part, twin, (program, master) in zip(autos, twins, held, strict=True):
            part._model, part.master = program, master
            twin._model = copy.deepcopy(program, memo)
        return Pair(model, guide)

    def forward(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`fn(model, guide, *args, **kwargs)`."""
        return fn(self.model, self.guide, *args, **kwargs)


def _uniform(x: Tensor, low: float = 0.0, high: float = 1.0, **named: Any) -> Tensor:
    low, high = named.get("from", low), named.get("to", high)  # torch's names, one of them no identifier
    return torch.rand_like(x) * (high - low) + low


#: torch's distributions draw with these in-place methods on fresh tensors and use what they return.
_DRAWS: dict[Callable, Callable[..., Tensor]] = {
    Tensor.normal_: lambda x, mean=0.0, std=1.0, **_: torch.randn_like(x) * std + mean,
    Tensor.uniform_: _uniform,
    Tensor.exponential_: lambda x, lambd=1.0, **_: -torch.log1p(-torch.rand_like(x)) / lambd,
    Tensor.cauchy_: lambda x, median=0.0, sigma=1.0, **_: (
        median + sigma * torch.tan(torch.pi * (torch.rand_like(x) - 0.5))
    ),
    Tensor.bernoulli_: lambda x, p=0.5, **_: (torch.rand_like(x) < p).to(x.dtype),
}

_ANSWERS = {**_DRAWS, **MAPPED_OPS}


class OutOfPlaceDraws(TorchFunctionMode):
    """Answers the in-place random methods of tensors out of place: vmap refuses them on tensors that are not mapped.

    Operations that vmap cannot map at all are answered too, see `bnnzoo._mapped_ops`.
    """

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Draw out of place, compute by mapped operations, or pass on."""
        return _ANSWERS.get(func, func)(*args, **(kwargs or {}))


def vectorize(fn: Callable, in_dims: Any = 0, randomness: str = "different") -> Callable:
    """`torch.func.vmap` for functions that run Pyro programs; each mapped call draws its own random numbers."""
    mapped = torch.func.vmap(fn, in_dims=in_dims, randomness=randomness)

    def call(*args: Any) -> Any:
        with OutOfPlaceDraws():
            return mapped(*args)

    return call


@contextmanager
def pyro_settings(*modules: nn.Module) -> Iterator[None]:
    """Run Pyro programs with parameters local to their modules and without validation, which calls `.item()`.

    Args:
        modules: The programs. PyroModules that were built while parameters were global get a local state.
    """
    for module in modules:
        for part in module.modules():
            if isinstance(part, PyroModule) and not hasattr(part._pyro_context, "param_state"):
                part._pyro_context.param_state = {"params": {}, "constraints": {}}
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False):
        yield


@contextmanager
def seeded(seed: int | None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's generators inside, and leave them as they were. None leaves them alone."""
    if seed is None:
        yield
        return
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In eval mode inside, then each part as before."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class CountingBytes(TorchDispatchMode):
    """Adds up the bytes of every tensor that operations make, views aside: what a pass needs at most."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.bytes += sum(t.numel() * t.element_size() for t in made if t.untyped_storage().data_ptr() not in given)
        return result
