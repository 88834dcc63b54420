"""LeNet on MNIST by method: test error within a stated processor time, and how a rotated digit is classified.

    BNNZOO_DATA=../shared/data python benchmarks/mnist.py --keep /tmp/mnist --figure docs/rotated.png

The MNF paper's LeNet, Table 2 and Figure 1. With `--keep`, what is finished stays finished and what was interrupted
goes on: one method a call, or all of them.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import describe, enlarged_digits, environment, parsed, parser, start, table, write
from matplotlib.figure import Figure
from pyro.distributions import Normal
from torch import Tensor, nn

import bnnzoo
from bnnzoo import BayesianNetwork, Posterior, data, evaluation, guides, likelihoods, models, objectives, priors
from bnnzoo.training import Progression

Parts = tuple[data.Dataset, data.Dataset]
"""Training and test data."""

DENSE_CONV: dict[Any, Any] = {nn.Conv2d: "dense", "*": "local"}
"""Local convolutions take twice the time."""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        guide: Builds the guide.
        paper: Test error in the MNF paper, in percent.
        prior: Of all weights.
        epochs: Passes over the training data.
        chains: Independent restarts.
        draws: Posterior draws of the test predictions; None takes `--draws`.
    """

    guide: Callable[[BayesianNetwork], guides.Guide]
    paper: float
    prior: Any = None
    epochs: int = 6
    chains: int = 1
    draws: int | None = None


SETTING: dict[str, Any] = {
    "batch_size": 100,
    "lr": 2e-3,  # falls to 0 along a cosine, epoch by epoch
    "kl_annealing": 0.5,  # the KL's weight rises from 0 to 1 over this share of the training
}

METHODS: dict[str, Method] = {
    "map": Method(guides.Map, paper=0.6, draws=1),
    "dropout": Method(guides.Dropout, paper=0.5),  # rate 0.5, but on the pixels none
    "ensemble": Method(guides.Map, paper=0.7, epochs=2, chains=5, draws=1),
    "mean-field": Method(partial(guides.MeanField, init_scale=0.02, sampling=DENSE_CONV), paper=0.9),
    "fflu": Method(
        partial(guides.MeanField, init_scale=0.02, sampling=DENSE_CONV), paper=0.9, prior=priors.LogUniform()
    ),
    "mnf": Method(partial(guides.MNF, max_scale=0.5, sampling=DENSE_CONV), paper=0.7),
}

LABELS = {
    "map": "Map (L2)",
    "dropout": "Dropout",
    "ensemble": "ensemble of Maps",
    "mean-field": "MeanField (FFG)",
    "fflu": "MeanField, log-uniform prior (FFLU)",
    "mnf": "MNF",
}


def run(name: str, parts: Parts, epochs: int, draws: int, seed: int, keep: Path) -> dict[str, Any]:
    """Fit and score one method, or read what an earlier call left.

    Args:
        name: One of `METHODS`.
        parts: Training and test data.
        epochs: Passes over the training data.
        draws: Posterior draws of the test predictions.
        seed: Fixes the initial network, the fit and the draws.
        keep: Folder of results, checkpoints and posteriors.

    Returns:
        Scores, seconds and the setting.

    Raises:
        SystemExit: If the folder holds the result of another setting.
    """
    method, (train, test) = METHODS[name], parts
    setting = {"epochs": epochs, "draws": draws, "chains": method.chains, "seed": seed, "rows": len(train)}
    done = keep / f"{name}.json"
    if done.exists():
        result = json.loads(done.read_text())
        if result["setting"] != setting:
            raise SystemExit(f"{done} is of the setting {result['setting']}, not {setting}: keep this one elsewhere")
        return result
    torch.manual_seed(seed)
    bnn = BayesianNetwork(models.LeNet(), likelihoods.Categorical(), method.prior or Normal(0.0, 1.0))
    spent = _Spent(keep / f"{name}.seconds")

    def progress(state: Progression) -> None:
        loss = state.history["loss"][:, -1].mean()
        print(f"{name}: epoch {state.epoch} of {epochs}, loss {loss:.0f}, {spent.so_far():.0f} CPU s", flush=True)

    posterior = bnnzoo.fit(
        bnn,
        method.guide(bnn),
        train,
        objective=objectives.ELBO(kl_weight=objectives.KLAnnealing(SETTING["kl_annealing"] * epochs)),
        epochs=epochs,
        batch_size=SETTING["batch_size"],
        lr=SETTING["lr"],
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        chains=method.chains,
        seed=seed,
        checkpoint=keep / f"{name}.checkpoint",
        callback=progress,
        progress=False,
    )
    posterior.save(keep / f"{name}.bnn")
    result = {"setting": setting, "fit_seconds": spent.so_far()}
    begin = time.process_time()
    prediction = posterior.predict(test.x, num_samples=draws, seed=seed)
    result |= evaluation.score(prediction, test.y)
    result["predict_seconds"] = time.process_time() - begin
    done.write_text(json.dumps(result, indent=2) + "\n")
    return result


class _Spent:
    """Processor seconds of a fit, added up over interrupted processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = float(path.read_text()) if path.exists() else 0.0
        self.begin = time.process_time()

    def so_far(self) -> float:
        """The sum, written down too."""
        total = self.before + time.process_time() - self.begin
        self.path.write_text(f"{total}\n")
        return total


def rotations(image: Tensor, degrees: list[int]) -> Tensor:
    """An image [C, H, W] turned counterclockwise by each angle, [angle, C, H, W]."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=image.dtype))
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # The grid says where an output pixel comes from, y downward.
    matrices = torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], 1)
    images = image.expand(len(degrees), *image.shape)
    grid = nn.functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


# Okabe and Ito's eight and two more; the digits in the bars tell classes apart without color.
COLORS = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999", "#882255",
)  # fmt: skip


def rotated(posteriors: dict[str, Posterior], image: Tensor, seed: int) -> Figure:
    """Class probabilities of an image as it turns, one panel a posterior: Figure 1 of the MNF paper.

    Args:
        posteriors: By title; 100 draws are taken of each.
        image: Of a digit, [1, 28, 28].
        seed: Fixes the draws.
    """
    degrees = list(range(0, 181, 15))
    images = rotations(image, degrees)
    figure = Figure(figsize=(9, 0.6 + 2.1 * len(posteriors) + 0.8), layout="constrained")
    heights = [2.1] * len(posteriors) + [0.6]
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for ax, (title, posterior) in zip(axes, posteriors.items(), strict=False):
        probs = posterior.predict(images, num_samples=100, seed=seed).probs
        bottom = torch.zeros(len(degrees), dtype=probs.dtype)
        for label in range(probs.shape[1]):
            height = probs[:, label]
            color = COLORS[label]
            ax.bar(range(len(degrees)), height, 0.85, bottom, color=color, edgecolor="white", linewidth=0.5)
            for place, share in enumerate(height.tolist()):
                if share > 0.12:
                    ink = "black" if color in ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#999999") else "white"
                    middle = bottom[place].item() + share / 2
                    ax.text(place, middle, str(label), color=ink, ha="center", va="center", fontsize=9)
            bottom = bottom + height
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_ylim(0, 1)
        ax.set_ylabel("class probability")
        ax.spines[["top", "right"]].set_visible(False)
    last = axes[-1]
    for place, each in enumerate(images):
        last.imshow(1 - each[0], cmap="gray", extent=(place - 0.42, place + 0.42, 0, 1), aspect="auto", vmin=0, vmax=1)
    last.set_xlim(-0.6, len(degrees) - 0.4)
    last.set_ylim(0, 1)
    last.set_yticks([])
    last.spines[["top", "right", "left"]].set_visible(False)
    last.set_xticks(range(len(degrees)), [f"{angle}°" for angle in degrees])
    last.set_xlabel("rotation; above, the image that the network sees")
    return figure


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    options.add_argument("--epochs", type=int, help="passes over the training data, for all methods alike")
    options.add_argument("--draws", type=int, default=20, help="posterior draws of the test predictions")
    options.add_argument("--keep", type=Path, help="folder of results, checkpoints and posteriors, to go on from")
    options.add_argument("--figure", type=Path, help="draw the rotated digit into this file; needs map and mnf")
    arguments = parsed(options, ("epochs", "draws"))
    if arguments.figure is not None and not {"map", "mnf"} <= set(arguments.methods):
        options.error("--figure compares map with mnf: --methods leaves one of them out")
    if arguments.smoke:
        arguments.epochs, arguments.draws = 1, 2
    start(arguments)
    parts = enlarged_digits() if arguments.smoke else data.load("mnist").split()
    with tempfile.TemporaryDirectory() as temporary:
        keep = Path(temporary) if arguments.keep is None else arguments.keep
        keep.mkdir(parents=True, exist_ok=True)
        draws = {name: METHODS[name].draws or arguments.draws for name in arguments.methods}
        results = {
            name: run(name, parts, arguments.epochs or METHODS[name].epochs, draws[name], arguments.seed, keep)
            for name in arguments.methods
        }
        sparsity = {
            name: _sparsity(bnnzoo.load(keep / f"{name}.bnn"))
            for name in arguments.methods
            if isinstance(METHODS[name].prior, priors.LogUniform)
        }
        if arguments.figure is not None:
            three = parts[1].x[int((parts[1].y == 3).nonzero()[0])]
            shown = {LABELS[name]: bnnzoo.load(keep / f"{name}.bnn") for name in ("map", "mnf")}
            rotated(shown, three, arguments.seed).savefig(arguments.figure, dpi=150)
    print("\n" + describe(environment(arguments)), "\n")
    print(_table(results, len(parts[1])))
    for name, shares in sparsity.items():
        listed = ", ".join(f"{100 * share:.1f}% of {site}" for site, share in shares.items())
        print(f"\n{LABELS[name]}: pruned at log σ² - log μ² ≥ 5: {listed}.")
        results[name]["sparsity"] = shares
    write(arguments, results)


def _sparsity(posterior: Posterior) -> dict[str, float]:
    """Which share of each weight is noise around 0."""
    return {site: float(share[0]) for site, share in posterior.sparsity().sites.items() if site.endswith("weight")}


def _table(results: dict[str, dict[str, Any]], rows: int) -> str:
    header = ["", "epochs", "draws", "test error", "paper", "NLL", "ECE", "entropy", "fit, CPU s", "predict, CPU s"]
    lines = []
    for name, result in results.items():
        setting, error = result["setting"], result["error"]
        times = f"{setting['chains']} x " if setting["chains"] > 1 else ""
        spread = math.sqrt(error * (1 - error) / rows)
        line = [LABELS[name], f"{times}{setting['epochs']}", f"{times}{setting['draws']}"]
        line += [f"{100 * error:.2f} ± {100 * spread:.2f}%", f"{METHODS[name].paper}%"]
        line += [f"{result[key]:.4f}" for key in ("nll", "ece", "entropy")]
        lines.append([*line, f"{result['fit_seconds']:.0f}", f"{result['predict_seconds']:.0f}"])
    return table(header, lines)


if __name__ == "__main__":
    main()
