"""`Renyi`: the variational Rényi bound, and `ImportanceWeighted`, its case α = 0."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from bnnzoo.objectives.base import DataTerm, Objective, is_number, total_log_likelihood
from bnnzoo.power_mean import log_power_mean


class Renyi(Objective):
    r"""The variational Rényi bound (Li & Turner 2016, sections 3 and 4) over values of all weights, as a loss.

        -L_α(q) = -1/(1-α) log (1/K) Σ_k [p(y, ω_k) / q(ω_k)]^(1-α),

    with p(y, ω) the joint density of all data and of weights that are one value for all of them. α = 1 is the ELBO (its
    divergence sampled), α = 0 the importance-weighted bound, α = -∞ the largest weight alone (VR-max). In the limit of
    large K it bounds the log evidence from below for α > 0 and from above for α < 0; in between its expectation moves
    from the ELBO (K = 1) to that limit, up for α < 1 and down for α > 1. The limit is infinite where the mean of the
    powers is: for α < 0 if q has too light tails, for α > 1 if it has too heavy ones. Gradients are of the
    reparameterized estimate, Σ_k v_k ∇ log [p(y, ω_k) / q(ω_k)], with weights v_k proportional to the powers and of sum
    1 (section 4.2). (In `BBAlpha` α counts the other way, and the mean is taken datum by datum.)

    The ratio is a product over all N data: in a network with many data and weights it differs so much that one particle
    takes nearly all the weight, and more particles bring little. A minibatch of B stands for N data by the power N/B of
    its likelihood, which is no unbiased estimate of the bound, unlike the ELBO's; nor has a minibatch's value any claim
    to bound the evidence.

    The guide must have a density, or one jointly with its auxiliary variables. Sites that a guide of Pyro's holds at a
    point beside others that it draws count as parameters: bounds are then of the evidence at that point. With β ≠ 1 the
    weights are p(y | ω) (p₀(ω) / q(ω))^β.

    Args:
        alpha: α, a number or -∞.
        num_particles: Number K ≥ 1 of draws, mapped by `vmap`.
        kl_weight: β, see `Objective`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, alpha: float = 0.5, num_particles: int = 10, kl_weight: float | Callable[[float], float] = 1.0
    ) -> None:
        super().__init__(num_particles, kl_weight)
        if not (is_number(alpha) and -math.inf <= alpha < math.inf):
            raise ValueError(f"alpha must be a finite number or -inf, not {alpha!r}")
        self.alpha = float(alpha)

    @property
    def joint(self) -> bool:
        """True: weights are values for all data."""
        return True

    def combine(self, data: list[DataTerm], divergence: Tensor) -> Tensor:
        """A power mean over the particles of the ratio of joint densities."""
        return -log_power_mean(total_log_likelihood(data) - divergence, 1.0 - self.alpha)


class ImportanceWeighted(Renyi):
    """`Renyi` with α = 0: the importance-weighted bound (Burda, Grosse & Salakhutdinov 2016) over all weights.

    Its expectation rises with K towards the log evidence, and is a lower bound of it for every K.

    Args:
        num_particles: Number K ≥ 1 of draws.
        kl_weight: β, see `Objective`.

    Raises:
        ValueError: If `num_particles` or `kl_weight` is out of range.
    """

    def __init__(self, num_particles: int = 10, kl_weight: float | Callable[[float], float] = 1.0) -> None:
        super().__init__(0.0, num_particles, kl_weight)
