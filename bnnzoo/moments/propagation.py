"""`propagate` and `per_layer`: a network's outputs, and those of all its layers, under uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from bnnzoo._vectorize import evaluating, seeded
from bnnzoo.moments.errors import located
from bnnzoo.moments.units import StochasticUnit
from bnnzoo.moments.value import Approximation, Fallback, Moments, options

Mode = Literal["ap1", "ap2", "sample"]
_Result = TypeVar("_Result")


def propagate(
    network: nn.Module,
    mean: Tensor,
    variance: Tensor | float | None = None,
    mode: Mode = "ap2",
    *,
    num_samples: int = 100,
    seed: int | None = 0,
    approximation: Approximation = "exact",
    fallback: Fallback | None = None,
) -> Moments:
    """Mean and variance of a network's output under a random input and the network's own noise.

    The network's noise is that of its dropout layers and stochastic units (`bnnzoo.moments.units`), whatever mode they
    are in; everything else (batch normalization) acts as in eval mode. Modes (Shekhovtsov & Flach 2018, section 4):

    - `"ap1"`: every noise is replaced by its mean: the ordinary forward pass;
    - `"ap2"`: means and variances go through (`Moments`), differentiably;
    - `"sample"`: mean and variance over draws of all noise.

    Args:
        network: Any module that takes one tensor and returns one.
        mean: The input's means, [N, ...].
        variance: Its variances ≥ 0, a number or broadcastable to the mean. None: the input is certain.
        mode: See above.
        num_samples: Draws ≥ 1 of mode `"sample"`.
        seed: Fixes the draws; None: torch's generator goes on.
        approximation: See `bnnzoo.moments.options`.
        fallback: See `bnnzoo.moments.options`.

    Returns:
        The output's moments; certain in mode `"ap1"`.

    Raises:
        ValueError: If an argument is out of range.
        NoRuleError: If an operation has no rule, and there is no fallback.
    """
    _check(mean, variance, mode, num_samples)
    with options(approximation, fallback), noise(network, mode != "ap1"), located(network):
        if mode == "ap1":
            return Moments(_tensor(network(mean)))
        if mode == "ap2":
            return _moments(network(Moments(mean, variance)))
        sums = _Sums()
        with seeded(seed, mean.device):
            for _ in range(num_samples):
                sums.add(_tensor(network(_draw(mean, variance))))
        return sums.moments()


def per_layer(
    network: nn.Module,
    mean: Tensor,
    variance: Tensor | float | None = None,
    mode: Mode = "ap2",
    **settings: Any,
) -> dict[str, Moments]:
    """The moments of every layer's output, by module path in the order of the calls.

    Layers are the modules without children. One that is called several times counts as often: `act`, `act#2`, ...

    Args:
        network: As for `propagate`.
        mean: As for `propagate`.
        variance: As for `propagate`.
        mode: As for `propagate`.
        **settings: As for `propagate`.

    Raises:
        ValueError: As of `propagate`.
        NoRuleError: As of `propagate`.
    """
    layers: dict[str, Any] = {}
    calls: dict[str, int] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[path] = calls.get(path, 0) + 1
            name = path if calls[path] == 1 else f"{path}#{calls[path]}"
            if not isinstance(output, Tensor):
                return
            if mode == "sample":
                layers.setdefault(name, _Sums()).add(output)
            else:
                layers[name] = output if isinstance(output, Moments) else Moments(output)

        return hook

    handles = [
        module.register_forward_hook(record(path))
        for path, module in network.named_modules()
        if not any(module.children())
    ]
    # each pass counts its own calls
    handles.append(network.register_forward_pre_hook(lambda module, args: calls.clear()))
    try:
        propagate(network, mean, variance, mode, **settings)
    finally:
        for handle in handles:
            handle.remove()
    return {name: value.moments() if isinstance(value, _Sums) else value for name, value in layers.items()}


@contextmanager
def noise(network: nn.Module, on: bool) -> Iterator[None]:
    """The network in eval mode inside, its own noise on or off, then each part as before."""
    with evaluating(network):
        for module in network.modules():
            if isinstance(module, _DropoutNd | StochasticUnit):
                module.training = on
        yield


class _Sums:
    """Mean and variance of tensors that come one by one."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, value: Tensor) -> None:
        """Count one more draw."""
        if not self.count:
            # Squares around the first draw do not cancel.
            self.first, self.sum, self.squares = value, torch.zeros_like(value), torch.zeros_like(value)
        self.count += 1
        deviation = value - self.first
        self.sum = self.sum + deviation
        self.squares = self.squares + deviation.square()

    def moments(self) -> Moments:
        """The moments of what came so far."""
        shift = self.sum / self.count
        return Moments(self.first + shift, (self.squares / self.count - shift.square()).clamp_min(0.0))


def _draw(mean: Tensor, variance: Tensor | float | None) -> Tensor:
    if variance is None:
        return mean
    return mean + torch.as_tensor(variance, dtype=mean.dtype, device=mean.device).sqrt() * torch.randn_like(mean)


def _tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"the network must return one tensor, not {type(output).__name__}")
    return output


def _moments(output: Any) -> Moments:
    output = _tensor(output)
    return output if isinstance(output, Moments) else Moments(output)


def _check(mean: Any, variance: Any, mode: str, num_samples: int) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(map(repr, get_args(Mode)))}, not {mode!r}")
    if not isinstance(mean, Tensor) or isinstance(mean, Moments):
        raise ValueError(f"mean must be a tensor, not {type(mean).__name__}")
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be an integer of at least 1, not {num_samples!r}")
    if variance is not None:
        values = torch.as_tensor(variance)
        if not bool((values >= 0).all()):
            raise ValueError(f"variances must be at least 0; the least is {values.min().item():g}")
        try:
            values.expand(mean.shape)
        except RuntimeError as error:
            raise ValueError(
                f"variance of shape {list(values.shape)} does not broadcast to the mean's {list(mean.shape)}"
            ) from error
