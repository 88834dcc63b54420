"""A model whose posterior is known: a linear network with known noise and a standard normal prior.

    python benchmarks/conjugate.py

With design matrix X (a column of ones for the bias), noise s and prior N(0, I), the posterior is N(m, Λ⁻¹) with
Λ = XᵀX/s² + I and m = Λ⁻¹Xᵀy/s²; the best factorized Gaussian has locs m and scales 1/√Λ_ii, and its ELBO is
log p(y) - ½(Σ log Λ_ii - log|Λ|). `MeanField`, NUTS and `Map` are held against that.
"""

from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from typing import Any

import arviz as az
import torch
from common import describe, environment, parser, start, table, write
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, Posterior, fit, guides, likelihoods, objectives, sample

ROWS, FEATURES, NOISE = 60, 4, 0.5

Data = tuple[Tensor, Tensor]
Rows = list[dict[str, Any]]


@dataclass
class Exact:
    """The closed forms.

    Attributes:
        mean: Of weights and bias, [D].
        precision: Λ, [D, D].
        log_evidence: log p(y).
    """

    mean: Tensor
    precision: Tensor
    log_evidence: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Exact":
        """From inputs [N, Q] and targets [N]."""
        design = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
        precision = design.T @ design / NOISE**2 + torch.eye(design.shape[1], dtype=torch.float64)
        mean = torch.linalg.solve(precision, design.T @ y.double() / NOISE**2)
        covariance = design @ design.T + NOISE**2 * torch.eye(len(x), dtype=torch.float64)
        zero = torch.zeros(len(x), dtype=torch.float64)
        marginal = torch.distributions.MultivariateNormal(zero, covariance)
        return cls(mean, precision, marginal.log_prob(y.double()).item())

    @property
    def scale(self) -> Tensor:
        """Scales of the best factorized Gaussian, [D]."""
        return self.precision.diagonal().rsqrt()

    @property
    def elbo(self) -> float:
        """ELBO of the best factorized Gaussian."""
        gap = self.precision.diagonal().log().sum() - torch.linalg.slogdet(self.precision).logabsdet
        return self.log_evidence - gap.item() / 2


def flat(values: dict[str, Tensor]) -> Tensor:
    """Weights then bias, [..., D], of values [..., 1, Q] and [..., 1]."""
    return torch.cat([values["weight"].squeeze(-2), values["bias"]], dim=-1).double()


def gaussians(posterior: Posterior) -> tuple[Tensor, Tensor]:
    """Locs and scales of a fitted `MeanField`, [chain, D] each."""
    locs, scales = [], []
    guide: Any = posterior.guide
    parameters, _ = posterior.state()
    for chain in range(posterior.chains):
        own = {n.removeprefix("guide."): v[chain] for n, v in parameters.items() if n.startswith("guide.")}
        guide.load_state_dict(own)
        q = guide.distributions()
        locs.append(flat({name: each.mean.detach() for name, each in q.items()}))
        scales.append(flat({name: each.variance.detach().sqrt() for name, each in q.items()}))
    return torch.stack(locs), torch.stack(scales)


def mean_field(bnn: BayesianNetwork, data: Data, exact: Exact, arguments: Namespace) -> Rows:
    """`MeanField` under `ELBO`, 50 restarts: locs, scales, and the ELBO as the objective estimates it."""
    epochs, chains, evaluations = (20, 2, 20) if arguments.smoke else (3000, 50, 10_000)
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    posterior = fit(
        bnn,
        guides.MeanField(bnn),
        data,
        objective=objectives.ELBO(num_particles=8),
        epochs=epochs,
        batch_size=ROWS,
        lr=0.02,
        scheduler=cosine,
        chains=chains,
        seed=arguments.seed,
        progress=False,
    )
    loc, scale = gaussians(posterior)
    error = (loc.mean(0) - exact.mean) / (loc.std(0) / chains**0.5)
    objective = objectives.ELBO()(posterior.bnn, posterior.guide)  # the last chain, loaded by `gaussians`
    with torch.no_grad():
        elbos = torch.stack([-objective(*data) for _ in range(evaluations)])
    standard_error = (elbos.std() / evaluations**0.5).item()
    return [
        _row("MeanField", "loc: worst error, in standard errors over restarts", error.abs().max().item(), "< 3"),
        _row("MeanField", "loc: worst error of a restart, in posterior scales",
             ((loc - exact.mean) / exact.scale).abs().max().item(), ""),
        _row("MeanField", "scale against 1/√Λ_ii: worst relative error of a restart",
             (scale / exact.scale - 1).abs().max().item(), "< 0.03"),
        _row("MeanField", f"ELBO minus closed form ({exact.elbo:.3f}), nats; ± {standard_error:.3f}",
             elbos.mean().item() - exact.elbo, "< 0.1"),
    ]  # fmt: skip


def nuts(bnn: BayesianNetwork, data: Data, exact: Exact, arguments: Namespace) -> Rows:
    """NUTS: means in Monte Carlo standard errors, covariance against Λ⁻¹."""
    draws, warmup, chains = (20, 20, 2) if arguments.smoke else (2000, 500, 2)
    settings: dict[str, Any] = {"num_samples": draws, "warmup_steps": warmup, "chains": chains, "seed": arguments.seed}
    posterior = sample(bnn, data, progress=False, **settings)
    w = flat(posterior.sample(draws))
    statistics = az.convert_to_dataset({"w": w.numpy()})
    mean_errors, sd_errors = (torch.as_tensor(az.mcse(statistics, method=m)["w"].values) for m in ("mean", "sd"))
    covariance = torch.linalg.inv(exact.precision)
    sd = covariance.diagonal().sqrt()
    correlation = covariance / sd.outer(sd)
    return [
        _row("NUTS", "mean: worst error, in Monte Carlo standard errors",
             ((w.mean((0, 1)) - exact.mean) / mean_errors).abs().max().item(), "< 3"),
        _row("NUTS", "scale: worst error, in Monte Carlo standard errors",
             ((w.flatten(0, 1).std(0) - sd) / sd_errors).abs().max().item(), "< 3"),
        _row("NUTS", "correlation: worst error",
             (torch.corrcoef(w.flatten(0, 1).T) - correlation).abs().max().item(), "< 0.05"),
    ]  # fmt: skip


def point(bnn: BayesianNetwork, data: Data, exact: Exact, arguments: Namespace) -> Rows:
    """`Map`: the mode, which is the mean."""
    epochs = 20 if arguments.smoke else 3000
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    posterior = fit(
        bnn,
        guides.Map(bnn),
        data,
        epochs=epochs,
        batch_size=ROWS,
        lr=0.02,
        scheduler=cosine,
        seed=arguments.seed,
        progress=False,
    )
    error = (flat(posterior.sample(1))[0, 0] - exact.mean).abs() / exact.scale
    return [_row("Map", "mode: worst error, in posterior scales", error.max().item(), "< 0.001")]


def _row(method: str, what: str, value: float, wanted: str) -> dict[str, Any]:
    return {"method": method, "what": what, "value": value, "wanted": wanted}


def main() -> None:
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    start(arguments)
    x = torch.randn(ROWS, FEATURES)
    x[:, 1] += 0.8 * x[:, 0]  # correlated inputs, so that the factorized Gaussian is not the posterior
    y = x @ torch.randn(FEATURES) + 0.7 + NOISE * torch.randn(ROWS)
    exact = Exact.of(x, y)
    bnn = BayesianNetwork(nn.Linear(FEATURES, 1), likelihoods.Gaussian(scale=NOISE))
    print(describe(environment(arguments)), "\n")
    rows = [row for check in (mean_field, nuts, point) for row in check(bnn, (x, y), exact, arguments)]
    print(table(["method", "what", "value", "wanted"], [[*map(_cell, row.values())] for row in rows]))
    write(arguments, rows)


def _cell(value: object) -> object:
    return f"{value:.2g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()
