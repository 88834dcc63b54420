"""BB-α's energies where everything is Gaussian: in closed form for many particles, by quadrature for a few.

The model is linear in its weights, noise and prior are Gaussian, and so is q = N(loc, diag(scale²)). The logarithms of
all that an objective averages over its particles (likelihoods, prior, q) are then quadratic in the weights, and so are
their sums: `Quadratic` knows the means of its exponential's powers, and hence everything else.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from bnnzoo.objectives import BBAlpha, Objective, Renyi


@dataclass(frozen=True)
class Gaussian:
    """q, or a prior: independent weights.

    Attributes:
        loc: Means, [D], double.
        log_scale: Logarithms of the standard deviations, [D].
    """

    loc: Tensor
    log_scale: Tensor

    @property
    def variance(self) -> Tensor:
        """Variances, [D]."""
        return (2 * self.log_scale).exp()

    @property
    def log_density(self) -> "Quadratic":
        """Its logarithm."""
        constant = -0.5 * (self.loc.square() / self.variance + math.log(2 * math.pi)).sum() - self.log_scale.sum()
        return Quadratic((1 / self.variance).diag(), self.loc / self.variance, constant)

    def nodes(self, count: int) -> tuple[Tensor, Tensor]:
        """Points [G, D] and weights [G] of a Gauss-Hermite rule, `count` of them in each dimension."""
        z, weights = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(count))
        grid = torch.cartesian_prod(*[z] * len(self.loc)).view(-1, len(self.loc))
        products = torch.cartesian_prod(*[weights / weights.sum()] * len(self.loc)).view(-1, len(self.loc)).prod(1)
        return self.loc + self.log_scale.exp() * grid, products


@dataclass(frozen=True)
class Quadratic:
    """-½ wᵀPw + hᵀw + c as a function of weights w [D]; one or several.

    Attributes:
        precision: P, [..., D, D].
        linear: h, [..., D].
        constant: c, [...].
    """

    precision: Tensor
    linear: Tensor
    constant: Tensor

    def __sub__(self, other: "Quadratic") -> "Quadratic":
        return Quadratic(self.precision - other.precision, self.linear - other.linear, self.constant - other.constant)

    def __mul__(self, factor: float) -> "Quadratic":
        return Quadratic(self.precision * factor, self.linear * factor, self.constant * factor)

    def sum(self) -> "Quadratic":
        """The sum over the first dimension."""
        return Quadratic(self.precision.sum(0), self.linear.sum(0), self.constant.sum(0))

    def __call__(self, w: Tensor) -> Tensor:
        """Values at weights [G, D], [..., G]."""
        square = torch.einsum("gd,...de,ge->...g", w, self.precision, w)
        return -0.5 * square + self.linear @ w.T + self.constant.unsqueeze(-1)

    def power_mean(self, power: float, q: Gaussian) -> Tensor:
        """`(1/power) log E_q exp(power · self)`, [...]; for power 0 its limit, the mean.

        Raises:
            torch.linalg.LinAlgError: If the expectation is infinite.
        """
        if power == 0:
            variance = (self.precision.diagonal(dim1=-2, dim2=-1) * q.variance).sum(-1)
            return -0.5 * ((self.precision @ q.loc) @ q.loc + variance) + self.linear @ q.loc + self.constant
        density = q.log_density
        root = torch.linalg.cholesky(density.precision + power * self.precision)
        shift = density.linear + power * self.linear
        half = torch.linalg.solve_triangular(root, shift.unsqueeze(-1), upper=False).squeeze(-1)
        log_mean = density.constant + power * self.constant + 0.5 * half.square().sum(-1)
        log_volume = 0.5 * len(q.loc) * math.log(2 * math.pi) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (log_mean + log_volume) / power

    def few(self, power: float, q: Gaussian, particles: int, nodes: int = 20) -> Tensor:
        """Expectation of `(1/power) log (1/K) Σ_k exp(power · self(w_k))` over K independent draws of q, [...]."""
        if power == 0 or particles == 1:
            return self.power_mean(0, q)
        w, weights = q.nodes(nodes)
        return mean_of_few(self(w), weights, power, particles)


def mean_of_few(values: Tensor, weights: Tensor, power: float, particles: int) -> Tensor:
    """Expectation of the log power mean of K independent draws among values that have probabilities (or a quadrature).

    For positive independent Z_k of mean 1, E log (1/K) Σ Z_k = ∫₀^∞ [e^-t - (E e^(-t Z / K))^K] dt / t (Frullani); the
    integral is a sum over log t.

    Args:
        values: Logarithms, [..., G].
        weights: Their probabilities, or the weights of a quadrature, [G].
        power: Any number.
        particles: K ≥ 1.
    """
    if power == 0 or particles == 1:
        return values @ weights
    limit = (power * values + weights.log()).logsumexp(-1)
    z = (power * values - limit.unsqueeze(-1)).exp()
    log_t, step = torch.linspace(-20, 10, 241, dtype=values.dtype), 0.125
    t = log_t.exp()
    transform = (-(t / particles)[:, None] * z.unsqueeze(-2)).exp() @ weights
    return (limit + step * ((-t).exp() - transform.pow(particles)).sum(-1)) / power


@dataclass(frozen=True)
class LinearModel:
    """y = design · w + noise.

    Attributes:
        design: [N, D], double.
        y: Targets, [N].
        noise: Standard deviation of the noise.
        prior_scale: Of every weight, whose prior mean is 0.
    """

    design: Tensor
    y: Tensor
    noise: float
    prior_scale: float

    @property
    def precision(self) -> Tensor:
        """The posterior's, [D, D]."""
        return self.design.T @ self.design / self.noise**2 + self.prior.log_density.precision

    @property
    def mean(self) -> Tensor:
        """The posterior's, [D]."""
        return torch.linalg.solve(self.precision, self.design.T @ self.y / self.noise**2)

    @property
    def prior(self) -> Gaussian:
        """Of all weights."""
        zero = torch.zeros(self.design.shape[1], dtype=self.design.dtype)
        return Gaussian(zero, torch.full_like(zero, math.log(self.prior_scale)))

    @property
    def log_likelihoods(self) -> Quadratic:
        """Of each datum."""
        variance = self.noise**2
        constant = -0.5 * (self.y.square() / variance + math.log(2 * math.pi * variance))
        outer = self.design.unsqueeze(-1) * self.design.unsqueeze(-2)
        return Quadratic(outer / variance, self.design * (self.y / variance).unsqueeze(-1), constant)

    def loss(self, objective: Objective, q: Gaussian, limit: bool = False, size: float | None = None) -> Tensor:
        """The expected loss of an objective: of its K particles, or in the limit of many.

        Args:
            objective: `ELBO`, `BBAlpha` or `Renyi`; its `kl_weight` must be a number.
            q: The guide.
            limit: As K → ∞.
            size: Number of data that the model's N stand for, N by default.
        """
        size = len(self.y) if size is None else size
        count = size / len(self.y)
        data, particles = self.log_likelihoods, objective.num_particles
        log_ratio = (q.log_density - self.prior.log_density) * objective.kl_weight
        mean = Quadratic.power_mean if limit else partial(Quadratic.few, particles=particles)
        if isinstance(objective, Renyi):
            return -mean(data.sum() * count - log_ratio, 1 - objective.alpha, q)
        alpha = objective.alpha if isinstance(objective, BBAlpha) else 0.0
        if isinstance(objective, BBAlpha) and objective.exact:
            return -count * mean(data - log_ratio * (1 / size), alpha, q).sum()
        return log_ratio.power_mean(0, q) - count * mean(data, alpha, q).sum()

    def optimum(self, objective: Objective, limit: bool = False) -> Gaussian:
        """The q of least loss, by BFGS from the ELBO's optimum.

        Raises:
            RuntimeError: If the search does not end in a minimum.
        """

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            values = torch.from_numpy(flat).requires_grad_()
            value = self.loss(objective, Gaussian(*values.chunk(2)), limit)
            return value.item(), torch.autograd.grad(value, values)[0].numpy()

        begin = torch.cat([self.mean, -0.5 * self.precision.diagonal().log()])
        found = minimize(loss, begin.numpy(), jac=True, method="BFGS", options={"gtol": 1e-6})
        if np.abs(found.jac).max() > 1e-4:
            raise RuntimeError(f"no optimum of {objective!r} found: {found.message}")
        return Gaussian(*torch.from_numpy(found.x).chunk(2))


def line() -> LinearModel:
    """Ten points of a line, most of them on one side: the posteriors of slope and intercept are correlated (-0.77)."""
    x = 0.2 * 1.35 ** torch.arange(10.0, dtype=torch.float64)
    noise = torch.randn(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return LinearModel(torch.stack([x, torch.ones_like(x)], 1), x - 0.5 + noise, noise=1.0, prior_scale=3.0)
