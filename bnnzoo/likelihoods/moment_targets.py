"""The targets' distribution where the network's output is known by its moments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from bnnzoo.likelihoods.base import Likelihood
from bnnzoo.moments import Moments, Nodes


class MomentTargets(TorchDistribution):
    """The distribution of targets given independent Gaussian outputs of a network: `E p(y | f)`.

    Args:
        likelihood: The likelihood.
        output: The network's outputs, [N, ...].
        sites: Values of the likelihood's own sites, `Nodes` among them.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch declares it so)

    def __init__(self, likelihood: Likelihood, output: Moments, sites: Mapping[str, Tensor | Nodes]) -> None:
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

        See `Likelihood.log_power_mean`. Over random sites of the likelihood itself (a noise scale) it is averaged.

        Args:
            y: Targets as the likelihood's `prepare` returns them.
            alpha: α.
        """
        mean, variance = self.output.loc, self.output.variance

        def given(**sites: Tensor) -> Tensor:
            if alpha == 0:
                return self.likelihood.expected_log_prob(mean, variance, y, **sites)
            return self.likelihood.log_power_mean(mean, variance, y, alpha, **sites)

        return _averaged(given, self.sites)

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


def _averaged(fn: Callable[..., Tensor], sites: Mapping[str, Tensor | Nodes]) -> Tensor:
    """The mean of a function of the sites over all nodes."""
    for name, value in sites.items():
        if isinstance(value, Nodes):
            parts = [_averaged(fn, {**sites, name: each}) for each in value.values]
            return torch.tensordot(value.weights, torch.stack(parts), 1)
    return fn(**sites)
