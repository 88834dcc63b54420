"""The product y = w₁ w₂ x + noise, whose posterior has two curved modes: what each guide's bound and draws make of it.

    python benchmarks/product_model.py --keep /tmp/product --figure docs/product.png

Both weights have standard normal priors, the noise is known, and least squares puts w₁ w₂ at 1 ± 0.3: the posterior is
known by quadrature. Given one weight the other's posterior is Gaussian, so the best factorized q(w₁) q(w₂) of any shape
is Gaussian: MeanField's. Nothing that keeps w₁ and w₂ independent can do better, nor hold both modes without putting
half of its mass where signs differ.

So it matters where the two weights are. In two layers, w₂ (w₁ x), MNF has one z for each, independent of the other's.
In one layer with two inputs, z is a vector of two, and its flow may depend on both. That network is `Product`.

"cooled": the KL's weight falls from 10 to 1 over the first half of the training, so that a guide is spread over both
modes before they separate (the KL divergence of the bound makes it settle in one otherwise).
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import describe, environment, kept, parser, start, table, write
from matplotlib.figure import Figure
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, Posterior, fit, guides, likelihoods, objectives, sample
from bnnzoo._contract.measure import mapped
from bnnzoo.evaluation.plots import BLUE, GRAY

SETTING: dict[str, Any] = {
    "epochs": 5000,  # of one step, with all data
    "lr": 0.01,  # falls to a fiftieth
    "particles": 64,
    "chains": 6,
    "hidden": 20,
    "cooling": 10.0,
    "draws": 20_000,  # of the bound, and of the weights
    "nuts": {"num_samples": 2000, "warmup_steps": 500},
}

EDGE, CELLS = 6.0, 1200
"""The quadrature's grid: [-EDGE, EDGE] in both weights, this many cells a side."""


class Product(nn.Module):
    """The product of a linear layer's two weights, times x; start at 1, in the middle of a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(2, 1, bias=False)
        nn.init.ones_(self.weights.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1] to [N, 1]."""
        each = self.weights(torch.eye(2, dtype=x.dtype, device=x.device))  # [2, 1]: w₁ and w₂
        return x * each.prod()


def two_layers() -> nn.Sequential:
    """The same function, one weight a layer."""
    layers = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    for layer in layers:
        nn.init.ones_(layer.weight)
    return layers


def observations() -> tuple[Tensor, Tensor]:
    """Inputs [8, 1] and targets [8] whose least squares estimate of w₁ w₂ is 1 ± 0.3 under unit noise."""
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)
    x = x / (0.3 * x.norm())
    noise = torch.randn(8, generator=torch.Generator().manual_seed(0)).double()
    noise = noise - x * (noise @ x) / (x @ x)
    return x[:, None].float(), (x + noise).float()


def grid() -> np.ndarray:
    """Midpoints of the cells, [CELLS]."""
    return (np.arange(CELLS) + 0.5) * (2 * EDGE / CELLS) - EDGE


def log_joint(x: Tensor, y: Tensor) -> np.ndarray:
    """Logarithm of p(y | w) p(w) on the grid, [CELLS, CELLS]."""
    w1, w2 = np.meshgrid(grid(), grid(), indexing="ij")
    product = torch.from_numpy(w1 * w2)
    xx, xy, yy = (float(a.double() @ b.double()) for a, b in ((x[:, 0], x[:, 0]), (x[:, 0], y), (y, y)))
    squares = yy - 2 * product * xy + product.square() * xx
    likelihood = -0.5 * squares.numpy() - 0.5 * len(y) * math.log(2 * math.pi)
    return likelihood - 0.5 * (w1**2 + w2**2) - math.log(2 * math.pi)


def log_integral(log_density: np.ndarray) -> float:
    """Logarithm of the integral over the grid."""
    top = log_density.max()
    return float(top + np.log(np.exp(log_density - top).sum()) + 2 * math.log(2 * EDGE / CELLS))


def best_factorized(x: Tensor, y: Tensor) -> float:
    """The highest bound of q(w₁) q(w₂), by coordinate ascent on the grid over densities of any shape."""
    joint, step = log_joint(x, y), 2 * EDGE / CELLS
    bounds = []
    for center in (0.5, 1.0, 2.0):
        q = [np.exp(-0.5 * ((grid() - center) / 0.3) ** 2)] * 2
        for turn in range(400):
            side = turn % 2
            other = q[1 - side] / (q[1 - side].sum() * step)
            log_q = np.tensordot(other, joint, (0, 1 - side)) * step
            q[side] = np.exp(log_q - log_q.max())
            q[side] /= q[side].sum() * step
        entropy = -sum((each * np.log(np.maximum(each, 1e-300))).sum() * step for each in q)
        bounds.append(q[0] @ joint @ q[1] * step**2 + entropy)
    return float(max(bounds))


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        label: Its name there.
        guide: Builds the guide.
        network: The network, one layer or two.
        cooled: Whether the KL's weight starts above 1.
        panel: Which panel of the figure it competes for, by its bound.
    """

    label: str
    guide: Callable[[BayesianNetwork], guides.Guide]
    network: Callable[[], nn.Module] = Product
    cooled: bool = False
    panel: str = ""


def _mnf(bnn: BayesianNetwork, **settings: Any) -> guides.MNF:
    size = {"hidden": SETTING["hidden"], "r_hidden": SETTING["hidden"], "init_scale": 0.1, "init_z_scale": 0.9}
    # One z for all rows: no row has weights of its own here.
    return guides.MNF(bnn, sampling="dense", **{**size, **settings})


def _flows(flow: str, lengths: tuple[int, ...]) -> dict[str, Method]:
    """One flow at several lengths, cooled and not."""
    return {
        f"{flow}-{length}{'-cooled' * cooled}": Method(
            f"MNF, {flow}, {length} steps" + ", cooled" * cooled,
            partial(_mnf, flow=flow, flow_length=length),
            cooled=cooled,
            panel=flow,
        )
        for length in lengths
        for cooled in (False, True)
    }


METHODS: dict[str, Method] = {
    "mean-field": Method("MeanField", partial(guides.MeanField, sampling="dense"), panel="mean-field"),
    "low-rank": Method("LowRank, rank 2", partial(guides.LowRank, rank=2), panel="low-rank"),
    "two-layers": Method("MNF, two layers (z of one input each)", _mnf, two_layers),
    "two-layers-cooled": Method("MNF, two layers, cooled", _mnf, two_layers, cooled=True),
    **_flows("masked", (2, 8)),
    **_flows("realnvp", (2, 4)),
    **_flows("iaf", (2, 4)),
}


def posterior_of(name: str, seed: int, keep: Path) -> Posterior:
    """Fit one method, or read what an earlier call left.

    Args:
        name: One of `METHODS`.
        seed: Fixes everything but the data.
        keep: Folder of posteriors.
    """
    return kept(keep / f"{name}.bnn", partial(_fitted, name, seed), METHODS[name].network())


def _fitted(name: str, seed: int) -> Posterior:
    method = METHODS[name]
    bnn = BayesianNetwork(method.network(), likelihoods.Gaussian(1.0))
    x, y = observations()
    epochs, high = SETTING["epochs"], SETTING["cooling"]

    def weight(epoch: float) -> float:
        return max(1.0, high ** (1 - 2 * epoch / epochs))

    return fit(
        bnn,
        method.guide(bnn),
        (x, y),
        objective=objectives.ELBO(SETTING["particles"], kl_weight=weight if method.cooled else 1.0),
        epochs=epochs,
        batch_size=len(x),
        lr=SETTING["lr"],
        scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.02 ** (1 / epochs)),
        clip_norm=10.0,
        chains=SETTING["chains"],
        seed=seed,
        progress=False,
    )


def reference(seed: int, keep: Path) -> list[Posterior]:
    """NUTS from either mode, a posterior of one chain each."""

    def drawn(sign: float) -> Posterior:
        bnn = BayesianNetwork(Product(), likelihoods.Gaussian(1.0))
        begin = init_to_value(values={"weights.weight": torch.full((1, 2), sign)})
        settings = {"seed": seed + (sign < 0), "init_strategy": begin, "progress": False, **SETTING["nuts"]}
        return sample(bnn, observations(), **settings)

    return [kept(keep / f"nuts{sign:+.0f}.bnn", partial(drawn, sign), Product()) for sign in (1.0, -1.0)]


def bounds(posterior: Posterior, draws: int) -> Tensor:
    """Single-draw estimates of each chain's ELBO, [chain, draw]."""
    loss = objectives.ELBO().differentiable_loss
    return -mapped(posterior._pair, posterior.state(), draws, loss, *observations(), seed=1).double()


def weights(posterior: Posterior, draws: int | None = None) -> Tensor:
    """Draws of w₁ and w₂, [chain, draw, 2]."""
    return torch.cat([each.flatten(2) for each in posterior.sample(draws).values()], -1)


def share(draws: Tensor) -> Tensor:
    """Share of draws [..., draw, 2] on the side of the positive mode, [...]."""
    return (draws.sum(-1) > 0).double().mean(-1)


def describe_fit(posterior: Posterior) -> dict[str, Any]:
    """Every chain's bound, its standard error, and the share of its draws on the side of the positive mode."""
    estimates = bounds(posterior, SETTING["draws"])
    return {
        "elbo": estimates.mean(1).tolist(),
        "error": (estimates.std(1) / estimates.shape[1] ** 0.5).tolist(),
        "share": share(weights(posterior, SETTING["draws"])).tolist(),
        "seconds": posterior.info["seconds"],
    }


def draw(panels: dict[str, tuple[np.ndarray, str]], joint: np.ndarray) -> Figure:
    """One panel a method: draws over the exact posterior's contours.

    Args:
        panels: Draws [draw, 2] and a line to say about them, by title.
        joint: From `log_joint`.
    """
    columns = 3
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.3 * rows + 0.5), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    posterior = np.exp(joint - joint.max())
    ordered = np.sort(posterior.ravel())[::-1]
    mass = ordered.cumsum() / ordered.sum()
    levels = [float(ordered[np.searchsorted(mass, held)]) for held in (0.95, 0.8, 0.5)]
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, (draws, line)) in zip(axes.flat, panels.items(), strict=False):
        ax.plot(*draws.T, ".", color=BLUE, markersize=2.5, alpha=0.35, markeredgewidth=0, rasterized=True)
        ax.contour(grid(), grid(), posterior.T, levels=levels, colors="black", linewidths=0.8)
        for line_at in (ax.axhline, ax.axvline):
            line_at(0, color=GRAY, linewidth=0.6, linestyle=":", zorder=0)
        ax.set_title(f"{title}\n{line}", fontsize=9)
        ax.set_xlim(-3, 3)
        ax.set_ylim(-3, 3)
        ax.set_xticks([-2, 0, 2])
        ax.set_yticks([-2, 0, 2])
        ax.set_aspect("equal")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("w₂")
    for ax in axes[-1]:
        ax.set_xlabel("w₁")
    figure.supxlabel("Contours hold 50%, 80% and 95% of the exact posterior.", fontsize=9)
    return figure


def shown(results: dict[str, dict[str, Any]]) -> list[str]:
    """Of the methods that compete for a panel the one with the highest bound, panel by panel."""
    best: dict[str, str] = {}
    for name, result in results.items():
        panel = METHODS[name].panel
        if panel and (panel not in best or max(result["elbo"]) > max(results[best[panel]]["elbo"])):
            best[panel] = name
    return list(best.values())


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    options.add_argument("--keep", type=Path, help="folder of posteriors: those in it are used as they are")
    options.add_argument("--figure", type=Path, help="draw the draws into this file")
    arguments = options.parse_args()
    if arguments.smoke:
        SETTING.update(epochs=4, chains=2, draws=20, nuts={"num_samples": 4, "warmup_steps": 4})
    start(arguments)
    joint = log_joint(*observations())
    evidence, factorized = log_integral(joint), best_factorized(*observations())
    half = log_integral(np.where(np.add.outer(grid(), grid()) > 0, joint, -np.inf))
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        keep = Path(temporary) if arguments.keep is None else arguments.keep
        keep.mkdir(parents=True, exist_ok=True)
        nuts = torch.cat([weights(posterior) for posterior in reference(arguments.seed, keep)])
        shares = ", ".join(f"{100 * each:.0f}%" for each in share(nuts))
        for name in arguments.methods:
            results[name] = describe_fit(posterior_of(name, arguments.seed, keep))
        panels = {"NUTS, from either mode": (nuts.flatten(0, 1).numpy(), f"log Z = {evidence:.2f}")}
        for name in shown(results):
            elbos = results[name]["elbo"]
            drawn = weights(posterior_of(name, arguments.seed, keep), nuts.shape[0] * nuts.shape[1])
            line = f"ELBO = log Z - {evidence - max(elbos):.2f}"
            panels[METHODS[name].label] = drawn[int(np.argmax(elbos))].numpy(), line
    if arguments.figure is not None:
        draw(panels, joint).savefig(arguments.figure, dpi=150)
    print("\n" + describe(environment(arguments)), "\n")
    print(f"log Z by quadrature: {evidence:.3f}. Of one mode alone: {half:.3f}. ", end="")
    print(f"Best bound of any q(w₁) q(w₂): {factorized:.3f}, log Z - {evidence - factorized:.3f}.")
    print(f"NUTS, one chain from either mode: {shares} of the draws on the positive side.\n")
    print(_table(results, evidence, factorized))
    write(arguments, {"setting": SETTING, "evidence": evidence, "factorized": factorized, "fits": results})


def _table(results: dict[str, dict[str, Any]], evidence: float, factorized: float) -> str:
    header = ["", "best ELBO", "below log Z", "above the best q(w₁) q(w₂)", "median chain, below log Z",
              "its draws on the positive side", "chains with both modes", "CPU s"]  # fmt: skip
    rows = []
    for name, result in results.items():
        best = int(np.argmax(result["elbo"]))
        elbo, error = result["elbo"][best], result["error"][best]
        both = sum(0.1 < each < 0.9 for each in result["share"])
        rows.append([
            METHODS[name].label, f"{elbo:.3f} ± {error:.3f}", f"{evidence - elbo:.2f}", f"{elbo - factorized:+.2f}",
            f"{evidence - np.median(result['elbo']):.2f}", f"{100 * result['share'][best]:.0f}%",
            f"{both} of {len(result['share'])}", f"{result['seconds']:.0f}",
        ])  # fmt: skip
    return table(header, rows)


if __name__ == "__main__":
    main()
