"""`BBAlpha`: black-box α-divergence minimization, and `Predictive`, its case α = 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnnzoo.objectives.base import DataTerm, Objective, is_number
from bnnzoo.power_mean import log_power_mean


class BBAlpha(Objective):
    r"""The BB-α energy: minimizing it fits q by α-divergences, from zero-forcing (α = 0) to mass-covering (α = 1).

    In the form of Li & Gal 2017 (eq. 6), for N data of which a batch has B,

        L(q) = β KL(q || p₀) - (N / B) Σ_n (1/α) log (1/K) Σ_k p(y_n | x_n, ω_nk)^α,

    with K draws ω_nk for each datum: of its own where the guide can draw so (masks of dropout, local
    reparameterization, flipout), else shared by the batch. α = 0 is the ELBO, exactly, and the loss is continuous
    there; α = 1 is minus the log predictive probability of each datum, plus the KL (`Predictive`); α < 0 is more
    zero-forcing than the ELBO. K = 1 is the ELBO whatever α. The logarithm of a mean of K draws is biased: the loss is
    too high, by about `α Var[log p] / 2K` a datum where that is small (`benchmarks/alpha.py` has figures).

    (In Pyro models other than a `BayesianNetwork` a datum is an element of an observed site's batch shape.)

    With `exact=True`, the energy before Li & Gal's approximation by large N (eqs. 2 and 3; Hernández-Lobato et al.
    2016; Li & Turner 2016), whose factors share out prior and q:

        L(q) = -(N / B) Σ_n (1/α) log (1/K) Σ_k [p(y_n | x_n, ω_k) (p₀(ω_k) / q(ω_k))^(β/N)]^α.

    It needs a guide with a density (or one with auxiliary variables, as `guides.MNF`, whose joint density counts) and
    draws that are whole weights, one for all data.

    Args:
        alpha: α, any finite number; 0.5 is the Hellinger value.
        num_particles: Number K ≥ 1 of draws; 10 in the paper. Mapped by `vmap`.
        kl_weight: β, see `Objective`.
        exact: The energy with the factors of p₀ and q.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        num_particles: int = 10,
        kl_weight: float | Callable[[float], float] = 1.0,
        exact: bool = False,
    ) -> None:
        super().__init__(num_particles, kl_weight)
        if not (is_number(alpha) and math.isfinite(alpha)):
            raise ValueError(f"alpha must be a finite number, not {alpha!r}")
        if not isinstance(exact, bool):
            raise ValueError(f"exact must be True or False, not {exact!r}")
        self.alpha = float(alpha)
        self.exact = exact

    @property
    def joint(self) -> bool:
        """Whether the energy is the exact one."""
        return self.exact

    def combine(self, data: list[DataTerm], divergence: Tensor) -> Tensor:
        """Power means over the particles, datum by datum."""
        loss = divergence.mean()
        if self.exact:
            data = _shared(data, divergence - loss)
        for log_likelihood, count in data:
            loss = loss - (count * log_power_mean(log_likelihood, self.alpha)).sum()
        return loss

    def _check(self, guide: nn.Module) -> None:
        super()._check(guide)
        one_draw = getattr(type(guide), "one_draw_a_batch", False) and guide.training
        if one_draw and self.num_particles > 1 and self.alpha != 0:
            raise ValueError(
                f"in training the draw of guides.{type(guide).__name__} is the batch itself, the same for all "
                f"particles, and {self!r} would be no mean over such draws: use objectives.ELBO()"
            )


class Predictive(BBAlpha):
    """`BBAlpha` with α = 1: minus the log predictive probability of each datum, plus β KL(q || p₀).

    Args:
        num_particles: Number K ≥ 1 of draws.
        kl_weight: β, see `Objective`.

    Raises:
        ValueError: If `num_particles` or `kl_weight` is out of range.
    """

    def __init__(self, num_particles: int = 10, kl_weight: float | Callable[[float], float] = 1.0) -> None:
        super().__init__(1.0, num_particles, kl_weight)


def _shared(data: list[DataTerm], log_ratio: Tensor) -> list[DataTerm]:
    """Log likelihoods less the N-th part of each particle's log ratio, [K]; N data are what the batch stands for."""
    size: Any = sum(
        count.expand(values.shape[1:]).sum() if isinstance(count, Tensor) else count * values[0].numel()
        for values, count in data
    )
    share = log_ratio / torch.where(torch.as_tensor(size) > 0, size, 1.0)  # no data at all, where all are masked
    return [(values - share.view(-1, *[1] * (values.dim() - 1)), count) for values, count in data]
