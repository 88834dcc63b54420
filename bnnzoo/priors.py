"""Priors over the weights of a network, declared by rule.

A prior is one distribution for every parameter, a callable `(name, parameter, module) -> distribution or None`, a dict
whose keys select parameters (exact name, glob pattern, module type, or `"*"`) and whose values are priors again, or
`None`: the parameter stays deterministic and is learned by maximum likelihood. `resolve` turns any of these into one
distribution (or `None`) a parameter.

    resolve(Normal(0.0, 1.0), network)
    resolve({"*.bias": None, nn.Conv2d: He(), "*": FanIn(scale=1.0)}, network)
"""

import copy
import difflib
import fnmatch
import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from pyro.distributions import Cauchy, Distribution, Laplace, Normal, StudentT, TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution as TorchBase
from torch.distributions import constraints
from torch.distributions.transforms import Transform
from torch.distributions.utils import broadcast_all
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

__all__ = [
    "PRIORS",
    "Cauchy",
    "FanIn",
    "He",
    "Laplace",
    "LogUniform",
    "Normal",
    "Prior",
    "ScaleMixture",
    "StudentT",
    "fan_in",
    "map_tensors",
    "resolve",
]

Rule: TypeAlias = Callable[[str, Tensor, nn.Module], Distribution | None]
Prior: TypeAlias = "Distribution | Rule | Mapping[str | type, Prior] | None"


class ScaleMixture(TorchDistribution):
    """Mixture of two centered Gaussians, a wide one and a narrow spike (Blundell et al. 2015).

    The density is `weight * N(0, scale1^2) + (1 - weight) * N(0, scale2^2)`. It has no analytic KL with a Gaussian and
    no reparameterized sampler.

    Args:
        weight: Probability of the first component, in [0, 1]; a number or a tensor.
        scale1: Standard deviation of the first component, positive.
        scale2: Standard deviation of the second component, positive.
        validate_args: As in `torch.distributions`.
    """

    arg_constraints = {  # noqa: RUF012 (as torch declares it)
        "weight": constraints.unit_interval,
        "scale1": constraints.positive,
        "scale2": constraints.positive,
    }
    support = constraints.real
    has_rsample = False

    def __init__(
        self,
        weight: float | Tensor = 0.5,
        scale1: float | Tensor = 1.0,
        scale2: float | Tensor = 0.1,
        validate_args: bool | None = None,
    ) -> None:
        self.weight, self.scale1, self.scale2 = broadcast_all(weight, scale1, scale2)
        super().__init__(self.weight.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Zero, of the batch shape."""
        return torch.zeros_like(self.weight)

    @property
    def variance(self) -> Tensor:
        """`weight * scale1^2 + (1 - weight) * scale2^2`."""
        return self.weight * self.scale1.square() + (1 - self.weight) * self.scale2.square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, computed by log-add-exp: finite wherever that of the wider component is."""
        if self._validate_args:
            self._validate_sample(value)
        first = self.weight.log() + Normal(0.0, self.scale1, validate_args=False).log_prob(value)
        second = torch.log1p(-self.weight) + Normal(0.0, self.scale2, validate_args=False).log_prob(value)
        return torch.logaddexp(first, second)

    def cdf(self, value: Tensor) -> Tensor:
        """Cumulative distribution function."""
        first, second = torch.special.ndtr(value / self.scale1), torch.special.ndtr(value / self.scale2)
        return self.weight * first + (1 - self.weight) * second

    def sample(self, sample_shape: Iterable[int] = ()) -> Tensor:
        """Draw without gradients."""
        with torch.no_grad():
            shape = self.shape(torch.Size(sample_shape))
            uniform = torch.rand(shape, dtype=self.weight.dtype, device=self.weight.device)
            noise = torch.randn(shape, dtype=self.weight.dtype, device=self.weight.device)
            return noise * torch.where(uniform < self.weight, self.scale1, self.scale2)

    def expand(self, batch_shape: Iterable[int], _instance: "ScaleMixture | None" = None) -> "ScaleMixture":
        """Broadcast to a larger batch shape."""
        new = self._get_checked_instance(ScaleMixture, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        TorchDistribution.__init__(new, batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


class LogUniform(TorchDistribution):
    """The improper log-uniform prior, `p(w)` proportional to `1 / |w|` (Kingma et al. 2015).

    `log_prob` is `-log |w|`, unnormalized; |w| is floored at the smallest normal number of its dtype, so the value at
    zero is finite (87.3 in single precision) and its gradient there is zero. There is nothing to sample from.

    Args:
        batch_shape: Shape of independent copies.
        validate_args: As in `torch.distributions`.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real
    has_rsample = False

    def __init__(self, batch_shape: Iterable[int] = (), validate_args: bool | None = None) -> None:
        super().__init__(torch.Size(batch_shape), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Unnormalized log density `-log |value|`."""
        floored = value.abs().clamp_min(torch.finfo(value.dtype).tiny)
        return -floored.log().expand(torch.broadcast_shapes(value.shape, self.batch_shape))

    def sample(self, sample_shape: Iterable[int] = ()) -> Tensor:
        """Raises: NotImplementedError, always."""
        raise NotImplementedError(
            "LogUniform is improper (its density 1/|w| has no finite integral): it has no samples. Draw from the "
            "posterior instead, or use a proper prior such as Normal or ScaleMixture where prior samples are needed."
        )

    rsample = sample

    def expand(self, batch_shape: Iterable[int], _instance: "LogUniform | None" = None) -> "LogUniform":
        """Broadcast to a larger batch shape."""
        new = self._get_checked_instance(LogUniform, _instance)
        TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new


def fan_in(name: str, parameter: Tensor, module: nn.Module) -> float:
    """How many inputs one output of a layer sums over.

    - linear, bilinear and convolution weights: `in_features`, `in1 * in2`, `in_channels / groups * kernel size` (as in
      `torch.nn.init`);
    - transposed convolutions: `in_channels / groups` times, a dimension, `max(kernel / stride, 1)`: the mean number of
      taps that reach an output. (`torch.nn.init` takes the output channels there.) It need not be whole;
    - a bias (any name with `bias`): that of its layer's weight (the name with `weight` instead), if there is one;
    - embeddings (each output is looked up) and everything else with fewer than two dimensions, such as the gains and
      biases of normalization layers: 1.

    Args:
        name: The parameter's name; only its last part is read.
        parameter: The parameter.
        module: The module that owns it.

    Returns:
        The fan-in, at least 1.
    """
    local = name.rpartition(".")[2]
    weight: object = parameter
    if "bias" in local:
        weight = getattr(module, local.replace("bias", "weight"), None)
    if not isinstance(weight, Tensor) or weight.dim() < 2 or isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return 1.0
    if isinstance(module, _ConvTransposeNd):
        taps = math.prod(max(k / s, 1.0) for k, s in zip(module.kernel_size, module.stride, strict=True))
        return module.in_channels / module.groups * taps
    return float(max(math.prod(weight.shape[1:]), 1))


class FanIn:
    """Prior rule `Normal(0, scale / sqrt(fan_in))`: layers keep the size of what they pass on.

    Biases take the fan-in of their weight; `fan_in` says how it is counted, and that it is 1 for normalization layers.

    Args:
        scale: Standard deviation at a fan-in of 1, positive.

    Raises:
        ValueError: The scale is not a positive finite number.
    """

    def __init__(self, scale: float = 1.0) -> None:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"FanIn(scale={scale!r}): the scale must be a positive finite number.")
        self.scale = float(scale)

    def __call__(self, name: str, parameter: Tensor, module: nn.Module) -> Distribution:
        """The prior of one parameter, on its device and in its dtype."""
        scale = self.scale / math.sqrt(fan_in(name, parameter, module))
        return Normal(parameter.new_zeros(()), parameter.new_full((), scale))

    def __repr__(self) -> str:
        return f"FanIn(scale={self.scale})"


class He:
    """Prior rule `Normal(0, sqrt(2 / fan_in))` of He et al. 2015: `FanIn` for ReLU networks."""

    def __call__(self, name: str, parameter: Tensor, module: nn.Module) -> Distribution:
        """The prior of one parameter, on its device and in its dtype."""
        return FanIn(math.sqrt(2.0))(name, parameter, module)

    def __repr__(self) -> str:
        return "He()"


PRIORS: dict[str, Callable[..., Any]] = {
    "normal": partial(Normal, loc=0.0, scale=1.0),
    "laplace": partial(Laplace, loc=0.0, scale=1.0),
    "student-t": partial(StudentT, df=3.0, loc=0.0, scale=1.0),
    "cauchy": partial(Cauchy, loc=0.0, scale=1.0),
    "scale-mixture": ScaleMixture,
    "log-uniform": LogUniform,
    "fan-in": FanIn,
    "he": He,
}
"""Constructors of the named priors; each may be called without arguments, or with some by keyword."""


# --------------------------------------------------------------------------------------------------- resolving a prior


@dataclass(frozen=True)
class _Entry:
    """A parameter, under every name it has (tied parameters have several), with the modules that own it."""

    name: str
    parameter: Tensor
    owners: tuple[tuple[str, nn.Module], ...]
    frozen: bool


def resolve(prior: Prior, network: nn.Module) -> dict[str, Distribution | None]:
    """Find the prior of every floating-point parameter of a network.

    A dict's keys select parameters: by exact name, by glob pattern (`fnmatch`, case sensitive), by module type (the
    parameter's own module is an instance of it), or all with `"*"`. A more specific key wins, in this order. Values are
    priors again, dicts included. A tied parameter appears once, under its first name; keys may use any of its names.
    Parameters with `requires_grad=False` stay deterministic unless a key other than `"*"` selects them.

    Args:
        prior: A distribution, a callable `(name, parameter, module) -> distribution or None`, a dict, or `None`. A
            distribution broadcasts to the parameter's shape, or (if it has event dimensions) has exactly its shape; its
            support is the real line.
        network: The network.

    Returns:
        For every parameter its prior, not yet expanded to the parameter's shape, or `None`: deterministic.

    Raises:
        ValueError: A key selects nothing, two equally specific keys clash, a parameter is selected by none, a
            distribution does not fit its parameter, or the network has lazy parameters without a shape.
        TypeError: Something is not a prior at all.
    """
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    parameters: dict[int, Tensor] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if is_lazy(parameter):
            raise ValueError(
                f"Parameter {name!r} is lazy and has no shape yet: call the network on a batch of inputs first."
            )
        if parameter.is_floating_point():
            parameters[id(parameter)] = parameter
            owners.setdefault(id(parameter), []).append((name, network.get_submodule(name.rpartition(".")[0])))
    entries = [
        _Entry(owners[key][0][0], parameter, tuple(owners[key]), not parameter.requires_grad)
        for key, parameter in parameters.items()
    ]
    resolved = _assign(prior, entries)
    return {entry.name: resolved[entry.name] for entry in entries}


def _assign(prior: Prior, entries: list[_Entry]) -> dict[str, Distribution | None]:
    """`resolve` for some of the parameters."""
    if isinstance(prior, Mapping):
        return _assign_mapping(prior, entries)
    if isinstance(prior, TorchBase) and not isinstance(prior, Distribution):
        raise TypeError(
            f"The prior {prior} is a torch.distributions object, which Pyro cannot sample at a site: use "
            f"pyro.distributions.{type(prior).__name__} with the same arguments."
        )
    if isinstance(prior, type):
        raise TypeError(f"The prior is the class {prior.__name__}; give an instance of it, {prior.__name__}(...).")
    if prior is not None and not isinstance(prior, Distribution) and not callable(prior):
        raise TypeError(
            f"{prior!r} (a {type(prior).__name__}) is not a prior: give a Pyro distribution, a callable "
            "(name, parameter, module) -> distribution or None, a dict of these, or None."
        )
    return {entry.name: None if entry.frozen else _apply_rule(prior, entry) for entry in entries}


def _apply_rule(prior: Distribution | Rule | None, entry: _Entry) -> Distribution | None:
    if prior is None:
        return None
    given = prior if isinstance(prior, Distribution) else prior(entry.name, entry.parameter, entry.owners[0][1])
    if given is None:
        return None
    if not isinstance(given, Distribution):
        raise TypeError(
            f"The prior rule {prior!r} returned {given!r} (a {type(given).__name__}) for parameter {entry.name!r}; "
            "it must return a Pyro distribution or None."
        )
    _check(given, entry)
    return given


def _assign_mapping(prior: Mapping[str | type, Prior], entries: list[_Entry]) -> dict[str, Distribution | None]:
    used: set[str | type] = set()
    chosen: dict[str | type, list[_Entry]] = {}
    resolved: dict[str, Distribution | None] = {}
    for key in prior:
        if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, nn.Module)):
            raise TypeError(f"Prior key {key!r} must be a parameter name, a glob pattern or a subclass of nn.Module.")
    for entry in entries:
        levels: dict[int, list[str | type]] = {}
        for key in prior:
            level = _level(key, entry)
            if level is not None:
                used.add(key)
                levels.setdefault(level, []).append(key)
        if not levels:
            if not entry.frozen:
                raise ValueError(
                    f"No prior for parameter {entry.name!r}: none of the keys {_names(prior)} selects it. Add a key "
                    'for it, or "*" for all the rest ({"*": None} leaves them deterministic).'
                )
            resolved[entry.name] = None
            continue
        best = min(levels)
        key, *rivals = levels[best]
        for rival in rivals:
            if prior[rival] is not prior[key]:
                raise ValueError(
                    f"Prior keys {_names([key, rival])} clash: both select parameter {entry.name!r} and are equally "
                    "specific. Make one of them an exact name, or narrow the patterns."
                )
        chosen.setdefault(key, []).append(replace(entry, frozen=False) if best < _CATCH_ALL else entry)
    for key in prior:
        if key not in used and key != "*":
            raise ValueError(_unmatched(key, entries))
    for key, selected in chosen.items():
        resolved |= _assign(prior[key], selected)
    return resolved


_CATCH_ALL = 3


def _level(key: str | type, entry: _Entry) -> int | None:
    """How specifically a key selects a parameter (lower wins); `None`: not at all."""
    names = [name for name, _ in entry.owners]
    if isinstance(key, type):
        return 2 if any(isinstance(owner, key) for _, owner in entry.owners) else None
    if key in names:
        return 0
    if key == "*":
        return _CATCH_ALL
    return 1 if any(fnmatch.fnmatchcase(name, key) for name in names) else None


def _names(keys: Iterable[str | type]) -> str:
    return ", ".join(repr(key) if isinstance(key, str) else key.__name__ for key in keys) or "(none)"


def _unmatched(key: str | type, entries: list[_Entry]) -> str:
    names = [name for entry in entries for name, _ in entry.owners]
    shown = ", ".join(names[:30]) + (f", ... ({len(names)} in all)" if len(names) > 30 else "")
    if isinstance(key, type):
        types = sorted({type(owner).__name__ for entry in entries for _, owner in entry.owners})
        return (
            f"Prior key {key.__name__} selects no parameter: the modules that own parameters are of type "
            f"{', '.join(types)}."
        )
    if any(name.startswith(f"{key}.") for name in names):
        hint = f" Did you mean {key + '.*'!r}?"
    else:
        close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Prior key {key!r} selects no parameter.{hint} The parameters are: {shown}."


def _check(prior: Distribution, entry: _Entry) -> None:
    """Raise ValueError where a distribution cannot be the prior of a parameter."""
    shape, where = entry.parameter.shape, f"The prior {prior} of parameter {entry.name!r}"
    if prior.event_dim == 0:
        try:
            fits = torch.broadcast_shapes(prior.batch_shape, shape) == shape
        except RuntimeError:
            fits = False
        needed = f"its batch shape must broadcast to the parameter's shape {tuple(shape)}"
    else:
        fits = prior.batch_shape + prior.event_shape == shape
        needed = f"with event dimensions, batch + event shape must be exactly the parameter's shape {tuple(shape)}"
    if not fits:
        raise ValueError(
            f"{where} has batch shape {tuple(prior.batch_shape)} and event shape {tuple(prior.event_shape)}: {needed}."
        )
    if getattr(prior, "is_discrete", False) or not _is_real(_base_support(prior)):
        raise ValueError(
            f"{where} has support {_base_support(prior)}: a weight is unconstrained and needs a continuous prior on "
            "the whole real line."
        )
    for name, constraint in getattr(prior, "arg_constraints", {}).items():
        # Pyro's validation may be off, and an invalid prior must not wait for the first NaN loss.
        value = prior.__dict__.get(name)
        if isinstance(value, Tensor) and not constraints.is_dependent(constraint) and not constraint.check(value).all():
            raise ValueError(f"{where} has {name} = {value}, which must satisfy {constraint}.")


def _base_support(distribution: Distribution) -> Any:
    """The support of one element."""
    support = distribution.support
    while hasattr(support, "base_constraint"):  # independent dimensions and mixtures wrap it
        support = support.base_constraint
    return support


def _is_real(support: object) -> bool:
    return isinstance(support, type(constraints.real))


# ------------------------------------------------------------------------------------------- tensors of a distribution


def map_tensors(distribution: Distribution, fn: Callable[[Tensor], Tensor]) -> Distribution:
    """Copy a distribution with a function applied to every tensor it holds.

    Nested distributions (independent, expanded, masked, mixtures, transformed), transforms (those that are modules too)
    and cached values are followed; a tensor held twice is mapped once. Distributions are not modules, so this is how
    priors follow `.to(device)` and `.double()`: a module's `_apply` maps the distributions it holds.

    Args:
        distribution: Any distribution; it stays as it is.
        fn: Applied to tensors of every dtype, integer ones included, as `nn.Module._apply` does.

    Returns:
        The copy, of the same class and shape.
    """
    return _map(distribution, fn, {})


def _map(value: Any, fn: Callable[[Tensor], Tensor], memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        memo[id(value)] = fn(value)
    elif isinstance(value, nn.Module):  # flows hold their parameters as modules do
        memo[id(value)] = copy.deepcopy(value)._apply(fn)
    elif isinstance(value, Distribution | TorchBase | Transform):
        new = object.__new__(type(value))
        memo[id(value)] = new  # before the fields: a transform and its inverse hold each other
        for name, field in vars(value).items():
            new.__dict__[name] = None if isinstance(field, weakref.ref) else _map(field, fn, memo)
    elif isinstance(value, dict):
        return type(value)((key, _map(item, fn, memo)) for key, item in value.items())
    elif type(value) in (list, tuple):  # not torch.Size
        return type(value)(_map(item, fn, memo) for item in value)
    else:
        return value
    return memo[id(value)]
