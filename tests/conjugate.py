"""Linear regression with known noise: the Bayesian network whose posterior and evidence are known."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, guides, likelihoods


class Conjugate:
    """`y = x w + b + noise`, priors N(0, prior_scale²) over w [D] and b; sites `weight` [1, D] and `bias` [1].

    Vectors over parameters hold the weight first, then the bias.
    """

    def __init__(self, n: int = 30, d: int = 3, noise: float = 0.5, prior_scale: float = 1.5, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        mixing = torch.eye(d) + 0.4 * torch.randn(d, d, generator=generator)
        self.x = torch.randn(n, d, generator=generator) @ mixing  # correlated inputs, so that posteriors correlate
        truth = torch.randn(d, generator=generator)
        self.y = self.x @ truth + 0.7 + noise * torch.randn(n, generator=generator)
        self.n, self.d, self.noise, self.prior_scale = n, d, noise, prior_scale
        self.design = torch.cat([self.x, torch.ones(n, 1)], 1).double()
        self.precision = self.design.T @ self.design / noise**2 + torch.eye(d + 1).double() / prior_scale**2
        self.covariance = self.precision.inverse()
        self.mean = self.covariance @ self.design.T @ self.y.double() / noise**2
        #: Standard deviations of the optimal factorized Gaussian, whose mean is `mean`.
        self.mean_field_scale = self.precision.diag().rsqrt()

    def bnn(self) -> BayesianNetwork:
        torch.manual_seed(11)
        return BayesianNetwork(
            nn.Linear(self.d, 1), likelihoods.Gaussian(self.noise), dist.Normal(0.0, self.prior_scale)
        )

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    @staticmethod
    def flat(draws: dict[str, Tensor]) -> Tensor:
        """Draws of the sites, with any leading dimensions (and Pyro's extra ones), as [draw, D + 1]."""
        weight, bias = draws["weight"], draws["bias"]
        return torch.cat([weight.reshape(-1, weight.shape[-1]), bias.reshape(-1, 1)], 1).detach().double()

    def expected_log_likelihood(self, mean: Tensor, covariance: Tensor, rows: slice = slice(None)) -> Tensor:
        """E log p(y | w) over N(mean, covariance), summed over some rows."""
        design, y = self.design[rows], self.y[rows].double()
        square = (y - design @ mean).square().sum() + (design @ covariance @ design.T).diag().sum()
        return -0.5 * square / self.noise**2 - 0.5 * len(y) * math.log(2 * math.pi * self.noise**2)

    def kl(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """KL(N(mean, covariance) || prior)."""
        size, variance = len(mean), self.prior_scale**2
        trace = (covariance.trace() + mean.square().sum()) / variance
        return 0.5 * (trace - size + size * math.log(variance) - covariance.logdet())

    def elbo(self, mean: Tensor, covariance: Tensor) -> Tensor:
        return self.expected_log_likelihood(mean, covariance) - self.kl(mean, covariance)

    def evidence(self) -> Tensor:
        """log p(y)."""
        cov = self.design @ self.design.T * self.prior_scale**2 + self.noise**2 * torch.eye(self.n).double()
        return torch.distributions.MultivariateNormal(torch.zeros(self.n).double(), cov).log_prob(self.y.double())


def gaussian_of(guide: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a Gaussian guide of a `Conjugate`, ours or one of Pyro's that has been called."""
    if isinstance(guide, guides.MeanField):
        return guide.loc.double(), (2 * guide.log_scale.double()).exp().diag()
    if isinstance(guide, AutoNormal):
        names = ("weight", "bias")
        mean, scale = (
            Conjugate.flat({name: getattr(part, name) for name in names})[0] for part in (guide.locs, guide.scales)
        )
        return mean, scale.square().diag()
    posterior = guide.distributions()["latent"] if isinstance(guide, guides.LowRank) else guide.get_posterior()
    if isinstance(guide, AutoDiagonalNormal):
        return posterior.mean.double(), posterior.variance.double().diag()
    return posterior.mean.double(), posterior.covariance_matrix.double()
