"""The targets' distribution where the network's output is known by its moments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from bnnzoo.likelihoods.base import Likelihood
from bnnzoo.likelihoods.quadrature import weighted_power_mean
from bnnzoo.moments import Moments, Nodes, NoMomentsError
from bnnzoo.power_mean import TINY


def check_sites(sites: Mapping[str, Tensor | Nodes]) -> None:
    """Refuse sites of a likelihood that are known by mean and variance alone.

    Args:
        sites: Their values.

    Raises:
        NoMomentsError: If there is one.
    """
    for name, value in sites.items():
        if isinstance(value, Moments):
            raise NoMomentsError(f"of the likelihood's site {name!r} it tells a mean and a variance alone")


class MomentTargets(TorchDistribution):
    """The distribution of targets given independent Gaussian outputs of a network: `E p(y | f)`.

    Args:
        likelihood: The likelihood.
        output: The network's outputs, [N, ...].
        sites: Values of the likelihood's own sites, `Nodes` among them.

    Raises:
        NoMomentsError: If such a site is known by mean and variance alone, as of Pyro's AutoGuides.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch declares it so)

    def __init__(self, likelihood: Likelihood, output: Moments, sites: Mapping[str, Tensor | Nodes]) -> None:
        check_sites(sites)
        self.likelihood = likelihood
        self.output = output
        self.sites = sites
        at_mean = likelihood.distribution(output.loc, **self._first())
        super().__init__(at_mean.batch_shape, at_mean.event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MomentTargets:
        """The same: a plate asks for the batch shape that there is.

        Raises:
            NotImplementedError: For another batch shape.
        """
        if torch.Size(batch_shape) != self.batch_shape:
            raise NotImplementedError(f"targets of batch shape {list(self.batch_shape)} do not expand")
        return self

    def log_power_mean(self, y: Tensor, alpha: float) -> Tensor:
        """`(1/α) log E p(y | f)^α`, [N]; its limit, the expectation of `log p(y | f)`, at α = 0.

        See `Likelihood.log_power_mean`. Random sites of the likelihood itself (a noise scale) are integrated too, by
        their nodes, each element by itself: targets may share one, or each output has its own.

        Args:
            y: Targets as the likelihood's `prepare` returns them.
            alpha: α.
        """
        mean, variance = self.output.loc, self.output.variance

        def given(sites: Mapping[str, Tensor]) -> Tensor:
            if alpha == 0:
                return self.likelihood.expected_log_prob(mean, variance, y, **sites)
            return self.likelihood.log_power_mean(mean, variance, y, alpha, **sites)

        return _integrated(given, self.sites, self._first(), alpha)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log predictive density, [N], as the likelihood's `log_power_mean` at α = 1 has it."""
        return self.log_power_mean(value, 1.0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws of outputs, and of targets given them."""
        mean = self.output.loc.expand(*sample_shape, *self.output.shape)
        output = mean + self.output.scale * torch.randn_like(mean)
        if sample_shape:
            flat = output.flatten(0, len(sample_shape) - 1)
            draws = torch.stack([self.likelihood.distribution(each, **self._first()).sample() for each in flat])
            return draws.unflatten(0, tuple(sample_shape))
        return self.likelihood.distribution(output, **self._first()).sample()

    def _first(self) -> dict[str, Tensor]:
        """The likelihood's sites at their median node."""
        return {
            name: value.values[len(value.values) // 2] if isinstance(value, Nodes) else value
            for name, value in self.sites.items()
        }


def _integrated(
    fn: Callable[[Mapping[str, Tensor]], Tensor],
    sites: Mapping[str, Tensor | Nodes],
    center: Mapping[str, Tensor],
    alpha: float,
) -> Tensor:
    """`(1/α) log E exp(α fn)` over the sites' nodes, [N], for a function that is a sum over the elements of the sites.

    Of such a function the power mean is the value at the center, and what each element adds to it.
    """
    total = at_center = fn(center)
    for name, value in sites.items():
        if not isinstance(value, Nodes):
            continue
        shape = center[name].shape
        for element in range(center[name].numel()):
            one = torch.zeros(center[name].numel(), dtype=torch.bool, device=at_center.device)
            one[element] = True
            moved = [torch.where(one.view(shape), node, center[name]) for node in value.values]
            excess = torch.stack([fn({**center, name: each}) - at_center for each in moved], -1)
            total = total + _power_mean(excess, value.weights, alpha)
    return total


def _power_mean(values: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """`(1/α) log Σ_q w_q exp(α values_q)` over the last dimension; the mean at α = 0."""
    return values @ weights if abs(alpha) < TINY else weighted_power_mean(values, alpha, weights)
