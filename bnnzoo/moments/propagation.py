"""`propagate` and `per_layer`: a network's outputs, and those of all its layers, under uncertainty."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from bnnzoo._vectorize import evaluating, seeded
from bnnzoo.moments.covariance import JointMoments
from bnnzoo.moments.errors import located
from bnnzoo.moments.sensitivity import TracedMoments
from bnnzoo.moments.units import StochasticUnit
from bnnzoo.moments.value import Approximation, Fallback, Moments, NoRuleError, Softmax, mean_of, options
from bnnzoo.moments.watching import watching

Mode = Literal["ap1", "ap2", "sample"]
Covariance = Literal["diagonal", "sensitivity", "full"]
_WAYS: dict[str, type[Moments]] = {"diagonal": Moments, "sensitivity": TracedMoments, "full": JointMoments}
_Result = TypeVar("_Result")


def propagate(
    network: nn.Module,
    mean: Tensor,
    variance: Tensor | float | None = None,
    mode: Mode = "ap2",
    *,
    num_samples: int = 100,
    seed: int | None = 0,
    covariance: Covariance = "diagonal",
    order: int = 1,
    approximation: Approximation = "exact",
    fallback: Fallback | None = None,
    softmax: Softmax = "logistic",
) -> Moments:
    """Mean and variance of a network's output under a random input and the network's own noise.

    The network's noise is that of its dropout layers and stochastic units (`bnnzoo.moments.units`), whatever mode they
    are in; everything else (batch normalization) acts as in eval mode. Modes (Shekhovtsov & Flach 2018, section 4):

    - `"ap1"`: every noise is replaced by its mean: the ordinary forward pass;
    - `"ap2"`: means and variances go through (`Moments`), differentiably;
    - `"sample"`: mean and variance of `num_samples` draws of all noise (the variance divides by their number).

    What mode `"ap2"` makes of covariances:

    - `"diagonal"`: elements of every layer are taken for independent, as in the paper; standard deviations of trained
      networks may be far off (0.4 to 0.6 of the true ones in dropout networks);
    - `"sensitivity"`: the same means; the outputs' sensitivities to every independent source of noise are pulled back
      through the network (`bnnzoo.moments.sensitivity`): the full covariance of the K outputs, within 1 to 2% there,
      for about K plain backward passes to the first noise; any network;
    - `"full"`: covariances of all units of a layer go through the network (`JointMoments`), which makes the means of
      deep networks better too: chains of layers of up to about 1,000 units, some 100 times the time.

    Args:
        network: Any module that takes one tensor and returns one.
        mean: The input's means, [N, ...].
        variance: Its variances ≥ 0, a number or broadcastable to the mean. None: the input is certain.
        mode: See above.
        num_samples: Draws ≥ 1 of mode `"sample"`.
        seed: Fixes the draws; None: torch's generator goes on.
        covariance: See above; of mode `"ap2"`.
        order: See `bnnzoo.moments.options`.
        approximation: See `bnnzoo.moments.options`.
        fallback: See `bnnzoo.moments.options`.
        softmax: See `bnnzoo.moments.options`.

    Returns:
        The output's moments; certain in mode `"ap1"`. With `covariance="sensitivity"` or `"full"` they have
        `covariance`, [N, K, K] of the K output elements of an example, flattened, and its diagonal as their variance;
        else asking for it raises AttributeError.

    Raises:
        ValueError: If an argument is out of range.
        NoRuleError: If an operation has no rule, and there is no fallback.
    """
    _check(mean, variance, mode, num_samples, covariance)
    with options(approximation, fallback, order, softmax), noise(network, mode != "ap1"), located(network):
        if mode == "ap1":
            return Moments(_tensor(network(mean.clone())))  # the first layer may write over it (inplace=True)
        if mode == "ap2":
            return leaving(network(entering(mean, variance, covariance)), covariance)
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
        **settings: As for `propagate`; not `covariance="sensitivity"`, which is pulled back from one value.

    Raises:
        ValueError: As of `propagate`, or if sensitivities are asked for.
        NoRuleError: As of `propagate`.
    """
    if settings.get("covariance") == "sensitivity":
        raise ValueError(
            "covariance='sensitivity' is of one value, pulled back to the noise, and not of every layer: propagate "
            "through the part of the network that ends with the layer, or take covariance='full'"
        )
    layers: dict[str, Any] = {}

    def record(name: str, module: nn.Module, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        if mode == "sample":
            layers.setdefault(name, _Sums()).add(output)
        else:
            value = _moments(output, Moments)
            # the next layer may write over it (inplace=True)
            layers[name] = Moments(value.loc.clone()) if value.certain else copy.copy(value)

    with watching(network, record):
        propagate(network, mean, variance, mode, **settings)
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
            self.first, self.sum, self.squares = value.clone(), torch.zeros_like(value), torch.zeros_like(value)
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
        return mean.clone()
    return mean + torch.as_tensor(variance, dtype=mean.dtype, device=mean.device).sqrt() * torch.randn_like(mean)


def _tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"the network must return one tensor, not {type(output).__name__}")
    return output


def entering(mean: Tensor, variance: Tensor | float | None = None, covariance: Covariance = "diagonal") -> Moments:
    """The input of a network through which moments go: what `propagate` calls the network with.

    For networks that are not called through `propagate`; `leaving` makes the result of their output.

    Args:
        mean: As for `propagate`.
        variance: As for `propagate`.
        covariance: As for `propagate`.

    Raises:
        ValueError: If `covariance` is unknown.
    """
    if covariance not in _WAYS:
        raise ValueError(f"covariance must be one of {', '.join(map(repr, _WAYS))}, not {covariance!r}")
    return _WAYS[covariance](mean, variance)


def leaving(output: Any, covariance: Covariance = "diagonal") -> Moments:
    """The moments of a network's output, with its covariance where there is one: what `propagate` returns.

    Args:
        output: What the network returned for an input by `entering`.
        covariance: As for `entering`.

    Raises:
        TypeError: If it is not one tensor.
        NoRuleError: If its covariance was lost on the way.
    """
    return _moments(output, _WAYS[covariance]).resolved()


def _moments(output: Any, way: type[Moments]) -> Moments:
    output = _tensor(output)
    if isinstance(output, way):
        return output
    if isinstance(output, Moments) and not output.certain:
        raise NoRuleError("the output's covariance was lost on the way: its last operations have no rule for it")
    return way(mean_of(output))


def _check(mean: Any, variance: Any, mode: str, num_samples: int, covariance: str) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(map(repr, get_args(Mode)))}, not {mode!r}")
    if not isinstance(mean, Tensor) or isinstance(mean, Moments):
        raise ValueError(f"mean must be a tensor, not {type(mean).__name__}")
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be an integer of at least 1, not {num_samples!r}")
    if covariance not in _WAYS:
        raise ValueError(f"covariance must be one of {', '.join(map(repr, _WAYS))}, not {covariance!r}")
    if covariance != "diagonal" and mode != "ap2":
        raise ValueError(f"covariance={covariance!r} goes with mode='ap2', not {mode!r}")
    if covariance != "diagonal" and not mean.dim():
        raise ValueError(f"covariance={covariance!r} needs a batch dimension: mean of shape [N, ...], not []")
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
