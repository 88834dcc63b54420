"""`LowRank`: a Gaussian whose covariance is of low rank plus diagonal."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to

from bnnzoo._types import Distribution
from bnnzoo._vectorize import seeded
from bnnzoo.guides.base import Guide
from bnnzoo.network import BayesianNetwork


class LowRank(Guide):
    """A Gaussian over all weights at once, `q(w) = N(loc, F Fᵀ + diag(scale²))`, F of shape [D, rank].

    The family of Pyro's `AutoLowRankMultivariateNormal` (Ong, Nott & Smith 2018), with weights as sites of their own
    names. One weight sample serves the whole batch. Sites of the likelihood (a noise scale with a prior) take part in
    unconstrained space. Memory is D (rank + 2) numbers, time a draw O(D rank²).

    The flat vector is drawn at the auxiliary site `latent`; the model's sites are its parts.

    Args:
        bnn: The model.
        rank: Number of columns of F, from 1 to the number D of weights; default √D, rounded.
        init_scale: Initial standard deviation of every weight, > 0: half of the variance from F, whose elements start
            as Gaussian noise, half from the diagonal.

    Attributes:
        rank: The rank, resolved.

    Raises:
        ValueError: If an argument is out of range, or a weight of the network is called `latent`.
    """

    in_state: ClassVar[tuple[str, ...]] = ("init_scale",)

    def __init__(self, bnn: BayesianNetwork, rank: int | None = None, init_scale: float = 0.1) -> None:
        super().__init__(bnn)
        size = self.layout.size
        rank = max(1, round(math.sqrt(size))) if rank is None else rank
        if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= size:
            raise ValueError(f"rank must be an integer from 1 to the number of weights, {size}, not {rank!r}")
        if not (math.isfinite(init_scale) and init_scale > 0):
            raise ValueError(f"init_scale must be positive, not {init_scale}")
        if "latent" in self.layout.names:
            raise ValueError("the network has a weight 'latent', a name that LowRank needs for its flat vector")
        self.rank = rank
        self.init_scale = init_scale
        self.loc = nn.Parameter(self.initial_loc())
        self.factor = nn.Parameter(self.loc.detach().new_empty(size, rank))
        self.log_scale = nn.Parameter(torch.empty_like(self.loc))
        with seeded(0, self.loc.device):  # where training starts depends on fit's seed alone
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start at the network's own values, every standard deviation around `init_scale`, in random directions."""
        with torch.no_grad():
            self.loc.copy_(self.initial_loc())
            self.factor.normal_(0.0, self.init_scale * math.sqrt(0.5 / self.rank))
            self.log_scale.fill_(math.log(self.init_scale * math.sqrt(0.5)))

    def distributions(self) -> dict[str, Distribution]:
        """The flat vector's distribution, under `latent`: all that is random."""
        variance = (2 * self.log_scale).exp()
        return {"latent": dist.LowRankMultivariateNormal(self.loc, self.factor, variance)}

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The Pyro guide; takes the model's arguments and returns a value for each site."""
        flat = pyro.sample("latent", self.distributions()["latent"], infer={"is_auxiliary": True})
        return {name: pyro.sample(name, point) for name, point in self.points(flat, jacobian=True).items()}

    def center(self) -> dict[str, Tensor]:
        """The mean of the flat vector, as sites."""
        return {name: point.mean for name, point in self.points(self.loc).items()}

    def log_prob(self, values: dict[str, Tensor]) -> Tensor:
        """Log density of values for all sites, a scalar.

        Args:
            values: A value for each site.
        """
        unconstrained = dict(values)
        jacobian = self.loc.new_zeros(())
        for name, prior in self.model.likelihood.sites().items():
            transform = biject_to(prior.support)
            unconstrained[name] = transform.inv(values[name])
            jacobian = jacobian + transform.log_abs_det_jacobian(unconstrained[name], values[name]).sum()
        return self.distributions()["latent"].log_prob(self.layout.join(unconstrained)) - jacobian
