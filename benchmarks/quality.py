"""Posterior quality: k̂, simulation-based calibration, the distance to NUTS, R-hat of functions.

    python benchmarks/quality.py --figure docs/vsbc.png

1. k̂ of guides on linear regression with known noise, whose posterior is Gaussian: of the right family, of one that
   cannot be right (independent Gaussians where inputs correlate), and of one that is too narrow.
2. Simulation-based calibration of the same model's exact posterior, of that with half its standard deviations, and of
   `MeanField`.
3. A network of one hidden layer: guides beside NUTS by predictions at 40 inputs. KL divergence and energy distance with
   their floors (the two halves of NUTS's draws), k̂, and R-hat over chains, of the weights and of the function.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from common import describe, environment, kept, parsed, parser, start, table, write
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, Posterior, evaluation, fit, guides, likelihoods, objectives, sample
from bnnzoo.evaluation.inference_data import chain_statistics

ROWS, NOISE = 24, 0.7
CHAINS = 4

Rows = list[list[str]]


def inputs(correlation: float) -> Tensor:
    """Two standardized inputs of an exact correlation, [N, 2]."""
    x = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(0))
    q, _ = torch.linalg.qr(torch.cat([torch.ones(ROWS, 1), x], 1))
    first, second = (ROWS**0.5 * q[:, column] for column in (1, 2))
    return torch.stack([first, correlation * first + (1 - correlation**2) ** 0.5 * second], 1)


def linear() -> BayesianNetwork:
    """Linear regression with known noise."""
    return BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(NOISE))


def exact(x: Tensor, factor: float) -> Callable[[tuple[Tensor, Tensor], int], dict[str, Tensor]]:
    """Draws of the exact posterior, its standard deviations multiplied by a factor."""
    design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    covariance = (design.T @ design / NOISE**2 + torch.eye(3).double()).inverse()
    root = factor * torch.linalg.cholesky(covariance)

    def draw(data: tuple[Tensor, Tensor], seed: int) -> dict[str, Tensor]:
        mean = covariance @ design.T @ data[1].double() / NOISE**2
        normal = torch.randn(200, 3, generator=torch.Generator().manual_seed(seed)).double()
        w = (mean + normal @ root.T).float()
        return {"weight": w[:, None, :2], "bias": w[:, 2:]}

    return draw


def khats(arguments: Namespace) -> Rows:
    """k̂ of guides on the linear model."""
    epochs = 10 if arguments.smoke else 1000
    rows = []
    cases: list[tuple[str, float, Callable[[BayesianNetwork], nn.Module], int]] = [
        ("MeanField, uncorrelated inputs: the right family", 0.0, guides.MeanField, epochs),
        ("LowRank, correlation 0.9: the right family", 0.9, partial(guides.LowRank, rank=3), epochs),
        ("MeanField, correlation 0.9: too narrow by nature", 0.9, guides.MeanField, epochs),
        ("MeanField, uncorrelated, stopped early: too narrow", 0.0, partial(guides.MeanField, init_scale=0.01), 10),
    ]
    for name, correlation, guide, count in cases:
        x, bnn = inputs(correlation), linear()
        y = x @ torch.tensor([1.0, -0.5]) + NOISE * torch.randn(ROWS, generator=torch.Generator().manual_seed(1))
        cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=count)
        posterior = fit(
            bnn, guide(bnn), (x, y), epochs=count, lr=0.02, chains=CHAINS, scheduler=cosine, seed=arguments.seed,
            progress=False,
        )  # fmt: skip
        found = evaluation.psis(posterior, (x, y), num_samples=50 if arguments.smoke else 4000, seed=arguments.seed)
        verdict = "good" if (found["khat"] < found.threshold).all() else "bad"
        rows.append([name, spread(found["khat"]), f"{found.threshold:.2f}", verdict])
    return rows


def spread(values: xr.DataArray) -> str:
    """The least and the largest value over chains."""
    return f"{float(values.min()):.2f} to {float(values.max()):.2f}"


def calibrations(arguments: Namespace) -> dict[str, xr.Dataset]:
    """Simulation-based calibration of three ways of inference."""
    x, bnn = inputs(0.9), linear()
    count, epochs = (10, 5) if arguments.smoke else (arguments.replications, 600)
    looked: dict[str, Any] = {"replications": count, "sites": "weight", "at": x[:1], "seed": arguments.seed}
    return {
        "exact posterior": evaluation.sbc(bnn, x, exact(x, 1.0), **looked),
        "half its standard deviations": evaluation.sbc(bnn, x, exact(x, 0.5), **looked),
        "MeanField": evaluation.vsbc(bnn, x, guides.MeanField, epochs=epochs, lr=0.02, progress=False, **looked),
    }


def histograms(results: dict[str, xr.Dataset]) -> Figure:
    """A column a way of inference, a row a quantity."""
    names = ("weight[0, 0]", "prediction[0]")
    figure = Figure(figsize=(11.0, 5.8), layout="constrained")
    panels = figure.subplots(len(names), len(results))
    for column, (label, result) in zip(panels.T, results.items(), strict=True):
        for panel, name in zip(column, names, strict=True):
            evaluation.plot_sbc(result, name, ax=panel)
            panel.set_title(f"{label}: {name}", fontsize=10)
    return figure


def tests(results: dict[str, xr.Dataset]) -> Rows:
    """The tests of what was found."""
    rows = []
    for label, result in results.items():
        test = evaluation.sbc_test(result)
        for name in test["quantity"].values:
            own = test.sel(quantity=name)
            numbers = [f"{float(own[f'{kind}_pvalue']):.2g}" for kind in ("ks", "asymmetry", "dispersion")]
            rows.append([label, str(name), *numbers, f"{float(own['dispersion']):.2f}"])
    return rows


def against_nuts(arguments: Namespace) -> Rows:
    """Guides beside NUTS on a small network."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(24, 1, generator=generator) - 1
    x = torch.where(x.abs() < 0.2, x.sign() * 0.6, x)  # a gap in the middle
    y = (torch.sin(3 * x) + 0.2 * torch.randn(24, 1, generator=generator))[:, 0]
    torch.manual_seed(arguments.seed)
    bnn = BayesianNetwork(nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)), likelihoods.Gaussian(0.2))
    draws, warmup, epochs = (8, 4, 5) if arguments.smoke else (200, 150, arguments.steps)
    grid = torch.linspace(-1.5, 1.5, 40)[:, None]
    quiet: dict[str, Any] = {"chains": CHAINS, "seed": arguments.seed, "progress": False}
    makers: dict[str, Callable[[], Posterior]] = {
        "NUTS": lambda: sample(
            bnn,
            (x, y),
            num_samples=draws,
            warmup_steps=warmup,
            max_tree_depth=4 if arguments.smoke else 6,
            **quiet | {"chains": 2},
        ),
    }
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    for guide in (guides.MeanField, guides.LowRank, guides.MNF, guides.Map):
        makers[guide.__name__] = partial(
            fit,
            bnn,
            guide(bnn),
            (x, y),
            objective=objectives.ELBO(arguments.particles),
            epochs=epochs,
            lr=0.01,
            scheduler=cosine,
            **quiet,
        )
    rows, reference = [], None
    for name, make in makers.items():
        posterior = make() if arguments.keep is None else kept(arguments.keep / f"{name}.bnn", make)
        prediction = posterior.predict(grid, num_samples=draws, seed=arguments.seed)
        reference = prediction if reference is None else reference
        far = evaluation.distance(prediction, reference, num_targets=200, seed=arguments.seed)
        pooled = evaluation.distance(prediction.pooled, reference, num_targets=200, seed=arguments.seed)
        weighable = name not in ("NUTS", "Map")
        weighed = evaluation.psis(posterior, (x, y), seed=arguments.seed) if weighable else None
        k, elbo = (spread(weighed[name]) if weighed else "" for name in ("khat", "elbo"))
        kl = spread(far["kl"])
        agree = ("", "")
        if name != "Map":
            weights = xr.DataArray(posterior.sample(draws)["0.weight"][..., 0].numpy(), dims=["chain", "draw", "unit"])
            worst = chain_statistics(weights).worst_rhat, evaluation.convergence(prediction).worst_rhat
            agree = f"{worst[0]:.2f}", f"{worst[1]:.2f}"
        if name == "NUTS":
            floors = [f"{float(far[f'{kind}_floor']):.3f}" for kind in ("kl", "energy")]
            rows.append(["floor: halves of NUTS's draws", floors[0], floors[0], floors[1], "", "", "", ""])
        of_all, energy = pooled["kl"].item(), float(far["energy"].mean())
        rows.append([name, kl, f"{of_all:.3f}", f"{energy:.3f}", elbo, k, *agree])
    return rows


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--replications", type=int, default=500, help="simulated data sets")
    options.add_argument("--only", choices=("khat", "calibration", "nuts"), help="one of the three parts")
    options.add_argument("--steps", type=int, default=1500, help="of the guides in part 3")
    options.add_argument("--particles", type=int, default=1, help="of the guides in part 3")
    options.add_argument("--keep", type=Path, help="keep the posteriors of part 3 in this folder, and use them again")
    options.add_argument("--figure", type=Path, help="write the histograms to this file")
    arguments = parsed(options, ["replications", "steps", "particles"])
    if arguments.figure is not None and arguments.only not in (None, "calibration"):
        options.error(f"--figure shows the calibration, and --only {arguments.only} leaves it out")
    start(arguments)
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    print(describe(environment(arguments)), "\n")
    results: dict[str, Any] = {}
    if arguments.only in (None, "khat"):
        results["khat"] = khats(arguments)
        print(table(["guide", "k̂ over 4 chains", "threshold", ""], results["khat"]), "\n")
    if arguments.only in (None, "calibration"):
        simulated = calibrations(arguments)
        results["calibration"] = tests(simulated)
        header = ["inference", "quantity", "p: uniform (KS)", "p: symmetric", "p: dispersion 1", "dispersion"]
        print(table(header, results["calibration"]), "\n")
        if arguments.figure is not None:
            histograms(simulated).savefig(arguments.figure, dpi=150)
    if arguments.only in (None, "nuts"):
        results["nuts"] = against_nuts(arguments)
        header = [
            "posterior",
            "KL of a chain",
            "KL of all chains",
            "energy, mean",
            "ELBO",
            "k̂",
            "R-hat: weights",
            "function",
        ]
        print(table(header, results["nuts"]))
    write(arguments, results)


if __name__ == "__main__":
    main()
