"""BB-α on a model where all is known: the bias of its loss by number of particles, and its optimum by α.

    python benchmarks/alpha.py --figure docs/alpha.png

A line through ten points, y = w x + b + noise, with known noise and Gaussian priors; q is factorized, the posterior is
not. For many particles the loss has a closed form, for a few a quadrature (`energies.py`): the library's losses, and
what they train, are held against those.
"""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import describe, environment, parser, start, table, write
from energies import Gaussian, line
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, priors
from bnnzoo._contract.measure import mapped
from bnnzoo._vectorize import Pair
from bnnzoo.chains import stack
from bnnzoo.evaluation.plots import BLUE, GRAY, VERMILION
from bnnzoo.objectives import ELBO, BBAlpha, Objective, Renyi

MODEL = line()

PARTICLES = (1, 10, 100, 1000)

SETTING: dict[str, Any] = {
    "losses": 100_000,  # for one number of the first table
    "block": 1_000_000,  # particles at a time
    "particles": 100,  # in training
    "epochs": 1000,  # of one step, with all data
    "lr": 0.1,  # falls to 0 along a cosine
    "chains": 32,
}

BIASED: dict[str, partial[Objective]] = {
    "BB-α, α = 0.5": partial(BBAlpha, 0.5),
    "BB-α, α = 1": partial(BBAlpha, 1.0),
    "BB-α, α = 1, exact": partial(BBAlpha, 1.0, exact=True),
}

TRAINED: dict[str, partial[Objective]] = {
    "ELBO (α = 0)": partial(ELBO),
    "BB-α, α = 0.5": partial(BBAlpha, 0.5),
    "BB-α, α = 1": partial(BBAlpha, 1.0),
    "BB-α, α = 0.5, exact": partial(BBAlpha, 0.5, exact=True),
    "BB-α, α = 1, exact": partial(BBAlpha, 1.0, exact=True),
    "Rényi, its α = 0.5": partial(Renyi, 0.5),
}

SHOWN = {  # color, line style, marker
    "ELBO (α = 0)": ("black", ":", "^"),
    "BB-α, α = 0.5": (BLUE, "--", "o"),
    "BB-α, α = 1": (VERMILION, "-", "s"),
}


def network() -> BayesianNetwork:
    """The line as a model of the library; sites `weight` and `bias`."""
    return BayesianNetwork(nn.Linear(1, 1), likelihoods.Gaussian(MODEL.noise), priors.Normal(0.0, MODEL.prior_scale))


def data() -> tuple[Tensor, Tensor]:
    """Inputs [N, 1] and targets [N]."""
    return MODEL.design[:, :1].float(), MODEL.y.float()


def losses(objective: Objective, q: Gaussian, count: int, seed: int) -> Tensor:
    """Independent losses of a guide that is q, [count]."""
    bnn = network()
    guide = guides.MeanField(bnn)
    with torch.no_grad():
        guide.loc.copy_(q.loc)
        guide.log_scale.copy_(q.log_scale)
    pair = Pair(bnn, guide)
    block = min(count, max(1, SETTING["block"] // objective.num_particles))
    drawn = [
        mapped(pair, stack([pair]), block, objective.differentiable_loss, *data(), seed=seed + number)[0].double()
        for number in range(-(-count // block))
    ]
    return torch.cat(drawn)


def biases(arguments: Namespace) -> dict[str, list[dict[str, float]]]:
    """How far losses of K particles are above those of infinitely many, at the latter's optimum."""
    results: dict[str, list[dict[str, float]]] = {}
    for name, make in BIASED.items():
        q = MODEL.optimum(make(), limit=True)
        limit = MODEL.loss(make(), q, limit=True).item()
        results[name] = []
        for particles in PARTICLES:
            objective = make(num_particles=particles)
            drawn = losses(objective, q, SETTING["losses"], arguments.seed)
            results[name].append({
                "particles": particles,
                "limit": limit,
                "bias": drawn.mean().item() - limit,
                "error": (drawn.std() / len(drawn) ** 0.5).item(),
                "quadrature": MODEL.loss(objective, q).item() - limit,
                "spread": drawn.std().item(),
            })  # fmt: skip
    return results


def optima(arguments: Namespace) -> dict[str, dict[str, Any]]:
    """Means and scales of slope and intercept: for infinitely many particles, for K, and where chains trained to."""
    results = {}
    for name, make in TRAINED.items():
        objective = make(num_particles=SETTING["particles"])
        found = trained(objective, arguments.seed)
        results[name] = {
            "limit": _flat(MODEL.optimum(objective, limit=True)).tolist(),
            "quadrature": _flat(MODEL.optimum(objective)).tolist(),
            "trained": found.mean(0).tolist(),
            "error": (found.std(0) / len(found) ** 0.5).tolist(),
        }
    return results


def trained(objective: Objective, seed: int) -> Tensor:
    """Means, then scales, that chains arrive at, [chain, 4]."""
    bnn, epochs = network(), SETTING["epochs"]
    posterior = fit(
        bnn,
        guides.MeanField(bnn, init_scale=0.3),
        data(),
        objective=objective,
        epochs=epochs,
        lr=SETTING["lr"],
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        chains=SETTING["chains"],
        seed=seed,
        progress=False,
    )
    parameters, _ = posterior.state()
    return torch.cat([parameters["guide.loc"], parameters["guide.log_scale"].exp()], 1).double()


def _flat(q: Gaussian) -> Tensor:
    return torch.cat([q.loc, q.log_scale.exp()])


def draw(measured: dict[str, list[dict[str, float]]]) -> Figure:
    """Left the optima on the exact posterior, right the bias of the loss by number of particles.

    Args:
        measured: From `biases`.
    """
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    left, right = figure.subplots(1, 2)
    _draw_optima(left)
    _draw_biases(right, measured)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_optima(ax: Axes) -> None:
    mean, covariance = MODEL.mean.numpy(), MODEL.precision.inverse().numpy()
    values, vectors = np.linalg.eigh(covariance)
    angle = np.degrees(np.arctan2(*vectors[::-1, 1]))
    for sigmas, shade in ((2, "0.92"), (1, "0.82")):
        width, height = 2 * sigmas * np.sqrt(values[::-1])
        label = "exact posterior, 1σ and 2σ" if sigmas == 1 else None
        ax.add_patch(Ellipse(mean, width, height, angle=angle, facecolor=shade, edgecolor="0.5", lw=0.7, label=label))
    for name, (color, style, marker) in SHOWN.items():
        q = MODEL.optimum(TRAINED[name](), limit=True)
        around = np.linspace(0, 2 * np.pi, 200)
        ellipse = q.loc[:, None] + 2 * q.log_scale.exp()[:, None] * np.stack([np.cos(around), np.sin(around)])
        ax.plot(*ellipse, color=color, linestyle=style, linewidth=1.8, label=f"{name}, 2σ")
        ax.plot(*q.loc, marker, color=color, markersize=4)
    reach = 2.5 * np.sqrt(np.diag(covariance))
    ax.set_xlim(mean[0] - reach[0], mean[0] + reach[0])
    ax.set_ylim(mean[1] - reach[1], mean[1] + 1.6 * reach[1])
    ax.set_xlabel("slope w")
    ax.set_ylabel("intercept b")
    ax.set_title("The best factorized q on a correlated posterior", fontsize=9.5)
    ax.legend(fontsize=8, frameon=False, loc="upper right")


def _draw_biases(ax: Axes, measured: dict[str, list[dict[str, float]]]) -> None:
    for name in [each for each in SHOWN if each in measured]:
        (color, style, marker), make, rows = SHOWN[name], BIASED[name], measured[name]
        q = MODEL.optimum(make(), limit=True)
        limit = MODEL.loss(make(), q, limit=True)
        counts = np.unique(np.geomspace(1, PARTICLES[-1], 40).astype(int))
        curve = [(MODEL.loss(make(num_particles=int(each)), q) - limit).item() for each in counts]
        ax.plot(counts, curve, color=color, linestyle=style, linewidth=1.4)
        place, bias, error = (np.array([row[what] for row in rows]) for what in ("particles", "bias", "error"))
        points = {"fmt": marker, "color": color, "markersize": 5.5, "capsize": 3, "label": name}
        ax.errorbar(place, bias, 2 * error, **points)
    guide = np.array([10.0, 1000.0])
    ax.plot(guide, 1.5 / guide, color=GRAY, linewidth=1)
    ax.annotate("1/K", (100, 1.5 / 100), textcoords="offset points", xytext=(3, 3), color=GRAY, fontsize=9)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("number of particles K")
    ax.set_ylabel("bias of the loss, nats")
    ax.set_title("Bias: measured (± 2 standard errors), by quadrature (lines)", fontsize=9.5)
    ax.legend(fontsize=8, frameon=False, loc="lower left")


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--figure", type=Path, help="draw optima and biases into this file")
    arguments = options.parse_args()
    if arguments.smoke:
        SETTING.update(losses=20, epochs=3, chains=2)
    start(arguments)
    measured, found = biases(arguments), optima(arguments)
    if arguments.figure is not None:
        draw(measured).savefig(arguments.figure, dpi=150)
    print("\n" + describe(environment(arguments)), "\n")
    rows = [
        [name, row["particles"], f"{row['limit']:.4f}", f"{row['bias']:.5f} ± {row['error']:.5f}",
         f"{row['quadrature']:.5f}", f"{row['spread']:.3f}"]
        for name, rows in measured.items() for row in rows
    ]  # fmt: skip
    header = ["", "K", "loss for K = ∞, closed form", "bias, measured", "by quadrature", "standard deviation of a loss"]
    print(table(header, rows), "\n")
    rows = []
    for name, result in found.items():
        for what in ("limit", "quadrature"):
            many = "∞" if what == "limit" else SETTING["particles"]
            rows.append([name, f"K = {many}, by scipy", *(f"{value:.4f}" for value in result[what])])
        pairs = zip(result["trained"], result["error"], strict=True)
        cells = [f"{value:.4f} ± {error:.4f}" for value, error in pairs]
        rows.append([name, f"K = {SETTING['particles']}, trained", *cells])
    print(table(["", "", "mean of the slope", "of the intercept", "scale of the slope", "of the intercept"], rows))
    spread = MODEL.precision.inverse().diagonal().sqrt()
    print(f"\nExact posterior: means {_list(MODEL.mean)}, standard deviations {_list(spread)}.")
    write(arguments, {"setting": SETTING, "biases": measured, "optima": found})


def _list(values: Tensor) -> str:
    return ", ".join(f"{value:.4f}" for value in values.tolist())


if __name__ == "__main__":
    main()
