"""Covariances of propagated moments: how right and how dear the ways of propagating are, in networks trained on MNIST.

    BNNZOO_DATA=../shared/data python benchmarks/moment_covariance.py

The MLP 784-1000-1000-10, trained with dropout of 0.5 and of 0.1, and one of four hidden layers of 300 units, with
dropout of 0.2, under their own noise and with noise on the input besides: means, standard deviations and covariances
of the logits against sampled passes, and the times of a pass. With `--keep`, fits are kept, those of two hidden layers
under the names that `moments_time.py` gives them.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    CLOCKS,
    Contender,
    describe,
    environment,
    interleave,
    kept,
    ratio,
    start,
    table,
    trained_network,
    write,
)
from moments_time import BATCH, RATES, arguments_of, dropout_network, images_of
from torch import Tensor, nn

import bnnzoo
from bnnzoo import data, guides, likelihoods, models, priors
from bnnzoo.moments import Moments, propagate

REPEATS = 16
"""How often an image is in a batch of sampled passes: larger products, fewer calls."""

NOISES = (None, 0.01)
"""Variances of noise on the input."""


@dataclass(frozen=True)
class Way:
    """One way of propagating.

    Attributes:
        name: Its row in the tables.
        settings: Of `propagate`.
        batch: How many images at once.
    """

    name: str
    settings: dict[str, Any]
    batch: int


WAYS = (
    Way("diagonal", {}, BATCH),
    Way("sensitivity", {"covariance": "sensitivity"}, BATCH),
    Way("full", {"covariance": "full"}, 8),
    Way("full, order 2", {"covariance": "full", "order": 2}, 8),
    Way("full, order 3", {"covariance": "full", "order": 3}, 8),
)


def deep_network(rate: float, hidden: int, part: data.Dataset, epochs: int, seed: int) -> bnnzoo.Posterior:
    """A network of four hidden layers trained with sampled dropout, to a point."""
    torch.manual_seed(seed)
    network = models.MLP(784, 10, hidden=(hidden,) * 4, dropout=rate)
    bnn = bnnzoo.BayesianNetwork(network, likelihoods.Categorical(), priors.Normal(0.0, 10**0.5))
    return bnnzoo.fit(bnn, guides.Map(bnn), part, epochs=epochs, batch_size=BATCH, seed=seed, progress=False)


@dataclass
class Sampled:
    """Means [N, K] and covariances [N, K, K] over sampled passes."""

    mean: Tensor
    covariance: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviations, [N, K]."""
        return self.covariance.diagonal(dim1=1, dim2=2).sqrt()


@torch.no_grad()
def sampled(network: nn.Module, x: Tensor, variance: float | None, draws: int, seed: int) -> Sampled:
    """Mean and covariance over so many passes, each with noise on the input and dropout of its own."""
    torch.manual_seed(seed)
    network.train()
    repeated = x.repeat(REPEATS, 1)
    outputs = []
    for _ in range(max(2, draws // REPEATS)):
        noise = 0.0 if variance is None else variance**0.5 * torch.randn_like(repeated)
        outputs.append(network(repeated + noise).view(REPEATS, len(x), -1))
    network.eval()
    values = torch.cat(outputs).double()
    mean = values.mean(0)
    centered = (values - mean).transpose(0, 1)
    return Sampled(mean, centered.mT @ centered / len(values))


def errors(mean: Tensor, scale: Tensor, covariance: Tensor | None, reference: Sampled) -> dict[str, float]:
    """How far moments are from the reference's.

    Args:
        mean: Means, [N, K].
        scale: Standard deviations, [N, K].
        covariance: Covariances, [N, K, K]; None: of independent outputs.
        reference: Those over sampled passes.

    Returns:
        `mean`: mean of |μ - μ*| / mean of σ*; `ratio`: geometric mean of σ / σ*; `std`: mean of |σ / σ* - 1|;
        `covariance`: mean over images of |C - C*| / |C*| (Frobenius); `margin`: mean of |σ / σ* - 1| of the margins
        between the largest logit and the others.
    """
    covariance = torch.diag_embed(scale.square()) if covariance is None else covariance
    relative = scale / reference.scale
    distance = torch.linalg.matrix_norm(covariance - reference.covariance)
    best = reference.mean.argmax(1)
    margins = (_margins(covariance, best) / _margins(reference.covariance, best)).sqrt()
    return {
        "mean": ((mean - reference.mean).abs().mean() / reference.scale.mean()).item(),
        "ratio": relative.log().mean().exp().item(),
        "std": (relative - 1).abs().mean().item(),
        "covariance": (distance / torch.linalg.matrix_norm(reference.covariance)).mean().item(),
        "margin": (margins - 1).abs().mean().item(),
    }


def _margins(covariance: Tensor, best: Tensor) -> Tensor:
    """Variances of the differences between one output of each image and the others, [N, K - 1]."""
    rows = torch.arange(len(best))
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    variance = diagonal[rows, best].unsqueeze(1) + diagonal - 2 * covariance[rows, best]
    others = torch.ones_like(variance, dtype=torch.bool)
    others[rows, best] = False
    return variance[others].view(len(best), -1)


@torch.no_grad()
def accuracy(
    network: nn.Module, x: Tensor, variance: float | None, draws: int, seed: int
) -> list[dict[str, str | float]]:
    """The errors of every way, and of a second, independent set of sampled passes: the reference's own."""
    reference = sampled(network, x, variance, draws, seed)
    again = sampled(network, x, variance, draws, seed + 1)
    records: list[dict[str, str | float]] = []
    for way in WAYS:
        parts = [propagate(network, rows, variance, **way.settings) for rows in x.split(way.batch)]
        mean, scale = (torch.cat([getattr(part, name) for part in parts]) for name in ("loc", "scale"))
        covariance = torch.cat([part.covariance for part in parts]) if way.settings else None
        records.append({"way": way.name, **errors(mean, scale, covariance, reference)})
    records.append({"way": "sampled again", **errors(again.mean, again.scale, again.covariance, reference)})
    return records


def costs(network: nn.Module, x: Tensor, variance: float | None, arguments: Any) -> list[dict[str, str | float]]:
    """The times of a pass of every way, as ratios to the diagonal one and to a plain pass on the same batch."""
    rounds, slot = (2, 0.0) if arguments.smoke else (arguments.rounds, 0.02)
    records: list[dict[str, str | float]] = []
    for batch in sorted({way.batch for way in WAYS}):
        rows = x[:batch]
        ways = [way for way in WAYS if way.batch >= batch or not way.settings]
        contenders = [Contender("plain", torch.no_grad()(partial(network, rows)))]
        for way in ways:
            if batch in (way.batch, min(each.batch for each in WAYS)):
                run: partial[Moments] = partial(propagate, network, rows, variance, **way.settings)
                contenders.append(Contender(way.name, torch.no_grad()(run)))
        interleave(contenders, rounds, slot, 1 if arguments.smoke else 2, CLOCKS[arguments.clock])
        for contender in contenders[1:]:
            records.append(
                {
                    "way": contender.name,
                    "batch": len(rows),
                    "ms": contender.median * 1e3,
                    "to diagonal": ratio(contender, contenders[1]),
                    "to plain": ratio(contender, contenders[0]),
                }
            )
    return records


def report(title: str, records: Sequence[dict[str, str | float]]) -> str:
    """A table of errors."""
    header = [title, "mean of |μ - μ*| / σ*", "σ / σ*, geometric mean", "mean of |σ / σ* - 1|"]
    header += ["of margins", "|C - C*| / |C*|"]
    rows = [
        [r["way"], f"{r['mean']:.4f}", f"{r['ratio']:.3f}", *(f"{r[k]:.1%}" for k in ("std", "margin", "covariance"))]
        for r in records
    ]
    return table(header, rows)


def main() -> None:
    arguments = arguments_of(__doc__.splitlines()[0], rounds=15, epochs=3, least_draws=64)
    start(arguments)
    print(describe(environment(arguments)), "\n")
    images = images_of(arguments.smoke)
    x = images.test.x.flatten(1)
    results: dict[str, Any] = {}
    hidden, epochs, seed = arguments.hidden, arguments.epochs, arguments.seed
    fits = {
        f"dropout-{rate:g}": (f"p = {rate:g}", partial(dropout_network, rate, hidden, images.train, epochs, seed))
        for rate in RATES
    }
    width = max(1, hidden * 3 // 10)
    fits["deep"] = ("4 hidden layers, p = 0.2", partial(deep_network, 0.2, width, images.train, epochs, seed))
    with tempfile.TemporaryDirectory() as temporary:
        keep = Path(temporary) if arguments.keep is None else arguments.keep
        keep.mkdir(parents=True, exist_ok=True)
        networks = {}
        for name, (described, make) in fits.items():
            networks[name] = network = trained_network(kept(keep / f"{name}.bnn", make))
            for variance in NOISES:
                title = described + ("" if variance is None else f", input variance {variance:g}")
                records = accuracy(network, x[: arguments.images], variance, arguments.draws, arguments.seed)
                print(report(title, records), "\n", flush=True)
                results[title] = records
        results["costs"] = []
        for variance in NOISES:
            records = costs(networks["dropout-0.5"], x, variance, arguments)
            header = ["dropout" if variance is None else "dropout and input noise", "batch", "ms", "passes of AP2"]
            form = {"ms": ".3g", "to diagonal": ".1f", "to plain": ".1f"}
            rows = [[r["way"], r["batch"], *(f"{r[k]:{f}}" for k, f in form.items())] for r in records]
            print(table([*header, "plain passes"], rows), "\n", flush=True)
            results["costs"] += [{"variance": variance, **r} for r in records]
    write(arguments, results)


if __name__ == "__main__":
    main()
