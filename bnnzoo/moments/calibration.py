"""`calibrate`: factors on each layer's standard deviation for the correlation that propagated moments leave out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from bnnzoo._vectorize import seeded
from bnnzoo.moments.errors import located
from bnnzoo.moments.propagation import noise
from bnnzoo.moments.value import Approximation, Fallback, Moments, options
from bnnzoo.moments.watching import watching

Per = Literal["layer", "channel", "unit"]

#: The buffer of a layer that holds its factor.
FACTOR = "moment_factor"

#: The buffer of a network that holds the mean variance of the inputs that its factors were made for.
NOISE = "moment_noise"

#: In how many bins a layer's elements are taken together at most, and of how many elements at least.
_BINS, _LEAST = 50, 20

#: Variances below this fraction of their layer's mean are left out.
_NEGLIGIBLE = 1e-4


@dataclass(frozen=True)
class LayerCalibration:
    """One layer of a calibration.

    Attributes:
        layer: Its path; that of a further call of it ends in `#2`, ...
        factor: What its standard deviations are multiplied with, the geometric mean if there are several; None where
            there is no factor.
        before: Geometric mean of σ / σ* over units and inputs without factors; σ* is the standard deviation over draws.
        after: The same with factors.
    """

    layer: str
    factor: float | None
    before: float
    after: float


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        layers: The layers in the order of their calls. Where inputs to check on were given, `before` and `after` are
            of those.
        num_samples: Draws, for the factors and for the check alike.
    """

    layers: tuple[LayerCalibration, ...]
    num_samples: int

    @property
    def factors(self) -> dict[str, float]:
        """The factor of every layer that has one, by its path."""
        return {row.layer: row.factor for row in self.layers if row.factor is not None}

    def __str__(self) -> str:
        head = "| layer | factor | σ/σ* before | after |\n| --- | --- | --- | --- |"
        rows = [
            f"| {row.layer or 'output'} | {'' if row.factor is None else f'{row.factor:.3f}'} | {row.before:.3f} | "
            f"{row.after:.3f} |"
            for row in self.layers
        ]
        return "\n".join([head, *rows])


def calibrate(
    network: nn.Module,
    x: Tensor,
    variance: Tensor | float | None = None,
    *,
    per: Per = "layer",
    num_samples: int = 30,
    check: Tensor | None = None,
    seed: int | None = 0,
    approximation: Approximation = "exact",
    fallback: Fallback | None = None,
) -> Calibration:
    r"""Give each layer a factor on its propagated standard deviations, from a few passes with drawn noise.

    Moments take the elements of a layer for independent, and standard deviations drift from layer to layer. The factor
    of a layer is the geometric mean over inputs (and units) of σ* / σ, with σ* the standard deviation over the draws
    and σ the propagated one, all earlier layers' factors applied: one pass with moments finds them all. Draws are
    few, and the logarithm of a single unit's σ* would be far off (a unit that rarely varies did not at all): units of
    like σ are taken together, and logarithms of averages, see `log_ratio`.

    The factors are kept with the network: a buffer `moment_factor` of each layer, applied by a forward hook whenever
    the layer returns uncertain `Moments`. Tensors pass as they are, and so do moments of other ways of propagating
    (covariances, `statistics`), which need no factors. Copies, `.to(...)` and state dicts carry the factors; for a
    state dict, see `load_calibration`. A layer is any module whose output is not that of a module inside it (a block
    that adds is one, a `Sequential` is not); one that is called several times in a pass gets no factor, and those that
    follow correct for it.

    Factors belong to the noise for which they were made: calibrate again for another variance of the inputs (its mean
    is kept in the buffer `moment_noise` of the network), another dropout rate, or other weights.

    Args:
        network: Any module that takes one tensor and returns one. Its former factors are dropped.
        x: Inputs (means), [N, ...]; some 100.
        variance: Their variances ≥ 0, a number or broadcastable to `x`. None: the inputs are certain, and the noise is
            that of dropout and stochastic units.
        per: One factor a `"layer"`, a `"channel"` (dimension 1 of its output), or a `"unit"` (averaged over the inputs
            alone: take more of them).
        num_samples: Draws of the noise, at least 4 and even.
        check: Inputs held out, to measure σ / σ* on; `variance` holds for them too. Default: `x` itself, which
            flatters.
        seed: Fixes the draws; None: torch's generator goes on.
        approximation: See `bnnzoo.moments.options`; use the same when predicting.
        fallback: See `bnnzoo.moments.options`.

    Returns:
        The layers' factors, and how far standard deviations are off before and after.

    Raises:
        ValueError: If an argument is out of range, or the network has no noise.
        NoRuleError: If an operation has no rule, and there is no fallback.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from bnnzoo import moments
        >>> network = nn.Sequential(nn.Linear(5, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1))
        >>> calibration = moments.calibrate(network, torch.randn(100, 5), 0.1, check=torch.randn(100, 5))
        >>> all(0.9 < row.after < 1.1 for row in calibration.layers)
        True
    """
    _check(x, variance, per, num_samples, check)
    modules = dict(network.named_modules())
    factors: dict[str, Tensor] = {}
    done = _Known()
    with torch.no_grad(), options(approximation, fallback), located(network):
        draws = _draw(network, x, variance, num_samples, seed)
        uncalibrate(network)  # not before what may fail

        def correct(name: str, module: nn.Module, output: Any) -> Any:
            if not _takes_factor(output) or output in done:
                return None
            if f"{name}#2" in draws or name not in modules:  # called several times
                return None
            factors[name] = _factor(draws[name], output.variance, per)
            output = _scaled(output, factors[name])
            done.add(output)
            return output

        with noise(network, True), watching(network, correct, containers=True):
            network(Moments(x, variance))
        if not factors:
            raise ValueError("nothing in the network is random: give the inputs a variance")
        at = x if check is None else check
        draws = draws if check is None else _draw(network, check, variance, num_samples, seed)
        before = _errors(network, at, variance, draws, set(factors))
        load_calibration(network, {f"{path}.{FACTOR}".removeprefix("."): factor for path, factor in factors.items()})
        after = _errors(network, at, variance, draws, set(factors))
    mean_variance = torch.as_tensor(0.0 if variance is None else variance, dtype=x.dtype, device=x.device).mean()
    network.register_buffer(NOISE, mean_variance)
    rows = [
        LayerCalibration(
            name, factors[name].log().mean().exp().item() if name in factors else None, before[name], value
        )
        for name, value in after.items()
    ]
    return Calibration(tuple(rows), num_samples)


def uncalibrate(network: nn.Module) -> None:
    """Drop the factors that `calibrate` gave a network."""
    for module in network.modules():
        for name in (FACTOR, NOISE):
            module._buffers.pop(name, None)
        for key, hook in list(module._forward_hooks.items()):
            if hook is _apply_factor:
                del module._forward_hooks[key]


def load_calibration(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the factors that a state dict holds, in place of its own.

    A state dict of a calibrated network does not fit one that was never calibrated until this has been called:

        moments.load_calibration(network, state)
        network.load_state_dict(state)

    Args:
        network: The network.
        state: The `state_dict` of a calibrated network of the same kind; entries other than factors are ignored.

    Raises:
        ValueError: If it holds no factors, or those of a module that the network has not.
    """
    modules = dict(network.named_modules())
    found = {name: value for name, value in state.items() if name.rpartition(".")[2] in (FACTOR, NOISE)}
    if not any(name.rpartition(".")[2] == FACTOR for name in found):
        raise ValueError(f"the state holds no factors (entries ending in {FACTOR}): it is not a calibrated network's")
    for name in found:
        if name.rpartition(".")[0] not in modules:
            raise ValueError(f"the state has {name!r}, and the network no module {name.rpartition('.')[0]!r}")
    uncalibrate(network)
    for name, value in found.items():
        path, _, kind = name.rpartition(".")
        modules[path].register_buffer(kind, value.detach().clone())
        if kind == FACTOR:
            modules[path].register_forward_hook(_apply_factor)


def _apply_factor(module: nn.Module, args: Any, output: Any) -> Any:
    """The forward hook of a calibrated layer: a function of the module alone, so that copies of modules share it."""
    return _scaled(output, module.get_buffer(FACTOR)) if _takes_factor(output) else None


def _takes_factor(output: Any) -> bool:
    return type(output) is Moments and not output.certain


def _scaled(output: Moments, factor: Tensor) -> Moments:
    return Moments(output.loc, output.variance * factor.square())


class _Known:
    """Outputs that were met, as they were then: operations in place make others of them."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor | None]] = []

    def add(self, value: Moments) -> None:
        """Remember a value."""
        self.parts.append((value.loc, value._variance))

    def __contains__(self, value: Moments) -> bool:
        return any(value.loc is loc and value._variance is variance for loc, variance in self.parts)


class _Halves:
    """The variances of draws that come one by one: of every other draw, and of the rest."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, value: Tensor) -> None:
        """Count one more draw."""
        if not self.count:
            # squares around the first draw do not cancel
            self.first = value.clone()
            self.sums, self.squares = value.new_zeros(2, *value.shape), value.new_zeros(2, *value.shape)
        deviation = value - self.first
        half = self.count % 2
        self.sums[half] += deviation
        self.squares[half] += deviation.square()
        self.count += 1

    def variances(self) -> Tensor:
        """Unbiased estimates from each half, independent, [2, ...]."""
        count = self.count // 2
        return ((self.squares - self.sums.square() / count) / (count - 1)).clamp_min(0.0)


def _draw(
    network: nn.Module, x: Tensor, variance: Tensor | float | None, num_samples: int, seed: int | None
) -> dict[str, _Halves]:
    """Every module's output over draws of the noise, by name."""
    draws: dict[str, _Halves] = {}

    def listen(name: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            draws.setdefault(name, _Halves()).add(output)

    scale = torch.as_tensor(0.0 if variance is None else variance, dtype=x.dtype, device=x.device).sqrt()
    with seeded(seed, x.device), noise(network, True), watching(network, listen, containers=True):
        for _ in range(num_samples):
            network(x if variance is None else x + scale * torch.randn_like(x))
    return draws


def _errors(
    network: nn.Module, x: Tensor, variance: Tensor | float | None, draws: dict[str, _Halves], factors: set[str]
) -> dict[str, float]:
    """Geometric means of σ / σ*, of every layer: those that have factors, and others that make values of their own."""
    errors: dict[str, float] = {}
    seen = _Known()

    def listen(name: str, module: nn.Module, output: Any) -> None:
        if _takes_factor(output) and (name in factors or output not in seen):
            seen.add(output)
            errors[name] = 1 / _factor(draws[name], output.variance, "layer").item()

    with noise(network, True), watching(network, listen, containers=True):
        network(Moments(x, variance))
    return errors


def _factor(draws: _Halves, variance: Tensor, per: Per) -> Tensor:
    """Geometric means of σ* / σ, in a shape that broadcasts with the layer's output."""
    one, other = draws.variances()
    if per == "layer":
        return (0.5 * log_ratio(one.flatten(), other.flatten(), variance.flatten())).exp().to(variance.dtype)
    if per == "channel":
        one, other, variance = (value.movedim(1, 0).flatten(1) for value in (one, other, variance))
        shape = [-1, *[1] * (draws.first.dim() - 2)]
    else:
        one, other, variance = (value.flatten(1).T for value in (one, other, variance))
        shape = list(draws.first.shape[1:])
    return (0.5 * torch.func.vmap(log_ratio)(one, other, variance)).exp().reshape(shape).to(variance.dtype)


def log_ratio(one: Tensor, other: Tensor, variance: Tensor) -> Tensor:
    """Mean of log(σ*² / σ²) over elements, of whose variances σ*² there are noisy estimates.

    Within a bin of elements of like σ², ratios r of estimated to propagated variance have the mean m₁ of the true
    ratios, and products of two independent ratios the mean m₂ of their squares, whatever the noise. If the true ratios
    are log-normal there, the mean of their logarithms is `log m₁ - ½ log(m₂ / m₁²)`.

    Left out are elements of less than a hundredth of the layer's standard deviation (root mean square), and bins where
    not one element varied in both estimates: a rectifier's tails, of which few draws tell nothing.

    Args:
        one: Unbiased estimates of the variances, [D].
        other: Others, independent of the first, [D].
        variance: Propagated variances, [D].

    Returns:
        A scalar; 0 where nothing varies.
    """
    variance, order = variance.double().sort()
    one, other = one.double()[order], other.double()[order]
    bins = min(_BINS, -(-len(order) // _LEAST))
    place = torch.arange(len(order), device=order.device) * bins // len(order)
    counts = (variance > 0) & (variance > _NEGLIGIBLE * variance.mean())

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(bins).index_add(0, place, torch.where(counts, values, 0.0))

    inverse = 1 / torch.where(counts, variance, 1.0)
    one, other = one * inverse, other * inverse
    number = total(torch.ones_like(variance))
    first, second = (total(value) / number.clamp_min(1.0) for value in (0.5 * (one + other), one * other))
    varies = second > 0
    number, first, second = (torch.where(varies, value, 1.0) for value in (number, first, second))
    logs = first.log() - 0.5 * (second / first.square()).clamp_min(1.0).log()
    weight = torch.where(varies, number, 0.0)
    return (weight * logs).sum() / weight.sum().clamp_min(1.0)


def _check(x: Any, variance: Any, per: str, num_samples: int, check: Any) -> None:
    for name, value in (("x", x), ("check", x if check is None else check)):
        if not isinstance(value, Tensor) or isinstance(value, Moments) or value.dim() < 2 or not len(value):
            raise ValueError(f"{name} must be a tensor of inputs, [N, ...], not {_described(value)}")
    if per not in get_args(Per):
        raise ValueError(f"per must be one of {', '.join(map(repr, get_args(Per)))}, not {per!r}")
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 4 or num_samples % 2:
        raise ValueError(f"num_samples must be an even number of at least 4, not {num_samples!r}")
    if variance is not None:
        values = torch.as_tensor(variance)
        if not bool((values >= 0).all()):
            raise ValueError(f"variances must be at least 0; the least is {values.min().item():g}")
        for inputs in (x, x if check is None else check):
            try:
                values.expand(inputs.shape)
            except RuntimeError as error:
                raise ValueError(
                    f"variance of shape {list(values.shape)} does not broadcast to inputs {list(inputs.shape)}"
                ) from error


def _described(value: Any) -> str:
    return f"one of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
