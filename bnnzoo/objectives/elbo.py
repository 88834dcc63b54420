"""`ELBO`: the evidence lower bound."""

from __future__ import annotations

import torch
from torch import Tensor

from bnnzoo.objectives.base import DataTerm, Objective


class ELBO(Objective):
    r"""The evidence lower bound, `-E_q[log p(y | w)] + β KL(q(w) || p(w))`, as a loss.

    The KL divergence is analytic wherever torch or Pyro has one registered for a site's pair of distributions, and
    sampled where not. Weights are drawn in the guide's structured form (`guides.MeanField(sampling=...)`).

    Args:
        num_particles: Number K ≥ 1 of draws of the weights in the estimate; mapped by `vmap`.
        kl_weight: β, see `Objective`.

    Raises:
        ValueError: If `num_particles` or `kl_weight` is out of range.
    """

    def combine(self, data: list[DataTerm], divergence: Tensor) -> Tensor:
        """Means over the particles."""
        particles = len(divergence)
        loss = divergence.sum() if particles == 1 else divergence.mean()
        for log_likelihood, count in data:
            loss = torch.sub(loss, (count * log_likelihood).sum(), alpha=1 / particles)
        return loss
