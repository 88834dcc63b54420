"""What posteriors of one network know of a gap in the data: a deep ensemble, mean field, and NUTS for reference.

python examples/uncertainty_bands.py --out bands.png           # seconds
python examples/uncertainty_bands.py --out bands.png --nuts    # minutes
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pyro.distributions import LogNormal

from bnnzoo import BayesianNetwork, Posterior, data, fit, guides, likelihoods, models, priors, sample

PRIOR = {"layers.0.*": priors.Normal(0.0, 3.0), "*": priors.Normal(0.0, 1.0)}  # functions that may bend within the data


def posteriors(epochs: int, draws: int) -> dict[str, Posterior]:
    """Fits the posteriors to the toy.

    Args:
        epochs: Passes over the 200 rows.
        draws: Draws of NUTS, and its warm-up steps; 0 leaves it out.

    Returns:
        The posteriors by name.
    """
    toy = data.load("gap").with_standardization()
    torch.manual_seed(0)  # the network's initial values
    net = models.MLP(1, 1, hidden=(20,), activation="tanh")
    bnn = BayesianNetwork(net, likelihoods.Gaussian(LogNormal(-1.0, 1.0)), prior=PRIOR)
    settings = {"epochs": epochs, "batch_size": 50, "lr": 1e-2}
    made = {
        "deep ensemble": fit(bnn, guides.Map(bnn), toy, chains=10, **settings),
        "mean field": fit(bnn, guides.MeanField(bnn, init_scale=0.02), toy, **settings),
    }
    if draws:
        made["NUTS"] = sample(bnn, toy, num_samples=draws, warmup_steps=draws, max_tree_depth=6)
    return made


def main() -> None:
    """Draws the predictive means with bands of two standard deviations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bands.png"), help="the figure's file")
    parser.add_argument("--epochs", type=int, default=600, help="passes over the data")
    parser.add_argument("--nuts", type=int, nargs="?", const=200, default=0, metavar="DRAWS", help="sample, too")
    options = parser.parse_args()
    toy = data.load("gap")
    x = torch.linspace(-3.0, 3.0, 200)[:, None]
    grid = x[:, 0]
    regions = {"data": (grid.abs() > 0.8) & (grid.abs() < 1.9), "gap": grid.abs() < 0.5, "outside": grid.abs() > 2.5}
    fitted = posteriors(options.epochs, options.nuts)
    figure = Figure(figsize=(4.2 * len(fitted), 3.4), layout="constrained")
    for axes, (name, posterior) in zip(figure.subplots(1, len(fitted), sharey=True), fitted.items(), strict=True):
        prediction = posterior.predict(x, num_samples=min(options.nuts or 100, 100))
        mean, total, epistemic = prediction.mean, prediction.std, prediction.epistemic.sqrt()
        for deviation, alpha, label in ((total, 0.15, "with the noise"), (epistemic, 0.35, "epistemic")):
            low, high = mean - 2 * deviation, mean + 2 * deviation
            axes.fill_between(grid, low, high, color="C0", alpha=alpha, lw=0, label=label)
        axes.plot(grid, mean, color="C0")
        axes.plot(toy.x[:, 0], toy.y, ".", color="black", ms=3)
        axes.set(title=name, xlabel="x", ylim=(-3, 3))
        words = ", ".join(f"{region} {epistemic[rows].mean():.3f}" for region, rows in regions.items())
        print(f"{name}: epistemic standard deviation: {words}")
    figure.axes[0].legend(frameon=False, loc="lower left")
    figure.savefig(options.out, dpi=100)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
