"""Networks that are linear in their parameters: Gaussian evidence for any of them, convolutional ones too."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from bnnzoo import BayesianNetwork, likelihoods


class LinearGaussian:
    """`y = network(x; w) + noise`, `w ~ N(0, prior_scale²)`, the network linear in w: posterior and evidence are known.

    Args:
        network: Outputs [N, 1].
        x: Inputs.
        noise: Known noise scale.
        prior_scale: Of every parameter.
        seed: Draws the true parameters and the targets.
    """

    def __init__(
        self, network: nn.Module, x: Tensor, noise: float = 0.5, prior_scale: float = 1.0, seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        values = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
        blocks = jacrev(lambda v: functional_call(network, v, (x,)).squeeze(-1))(values)
        self.network, self.x, self.noise, self.prior_scale = network, x, noise, prior_scale
        self.design = torch.cat([blocks[name].flatten(1) for name in values], 1).double()
        truth = prior_scale * torch.randn(self.design.shape[1]).double()
        self.y = (self.design @ truth + noise * torch.randn(len(x)).double()).float()
        precision = self.design.T @ self.design / noise**2 + torch.eye(len(truth)).double() / prior_scale**2
        self.covariance = precision.inverse()
        self.mean = self.covariance @ self.design.T @ self.y.double() / noise**2

    def bnn(self) -> BayesianNetwork:
        return BayesianNetwork(self.network, likelihoods.Gaussian(self.noise), dist.Normal(0.0, self.prior_scale))

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    def evidence(self) -> Tensor:
        """log p(y)."""
        size = len(self.y)
        covariance = self.design @ self.design.T * self.prior_scale**2 + self.noise**2 * torch.eye(size).double()
        normal = torch.distributions.MultivariateNormal(torch.zeros(size).double(), covariance)
        return normal.log_prob(self.y.double())
