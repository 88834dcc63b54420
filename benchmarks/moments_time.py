"""What moment propagation costs, and how many sampled passes it is worth.

    BNNZOO_DATA=../shared/data python benchmarks/moments_time.py

Passes and steps of the MLP 784-1000-1000-10 on batches of 128 beside ordinary ones, with analytic dropout too, and of
LeNet with normalization by propagated statistics; then, in the same MLP trained with dropout on MNIST, how many Monte
Carlo passes have the same error of the mean and of the standard deviation of the logits: S passes have a root mean
square error of σ/√S, and of σ/√(2S). With `--keep`, fits are kept.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    CLOCKS,
    LR,
    Contender,
    describe,
    enlarged_digits,
    environment,
    interleave,
    kept,
    mlp,
    parsed,
    parser,
    ratio,
    start,
    table,
    trained_network,
    write,
)
from floors import plain_step
from floors_moments import analytic_dropout_step, forward
from step_time import MEAN_FIELD, bnnzoo_contender
from torch import Tensor, nn

import bnnzoo
from bnnzoo import BayesianNetwork, data, guides, likelihoods, models, moments, objectives, priors
from bnnzoo.moments import Moments, propagate
from bnnzoo.moments.softmax import log_softmax
from bnnzoo.reproduce.moments_dropout import METHODS
from bnnzoo.reproduce.moments_nets import Images, held_out
from bnnzoo.reproduce.moments_normalization import KINDS, lenet, normalized

BATCH = 128
WAYS = ("diagonal", "sensitivity", "full")
RATES = (0.5, 0.1)
REPEATS = 16
"""How often an image is in a batch of the reference's sampled passes: larger products, fewer calls."""


def loss(output: Tensor, y: Tensor) -> Tensor:
    """`-log q(y)`: the cross entropy, of moments with the simplified softmax."""
    if isinstance(output, Moments):
        return nn.functional.nll_loss(log_softmax(output.loc, output.variance, 1, "simplified"), y)
    return nn.functional.cross_entropy(output, y)


def backward(network: nn.Module, run: Callable[[], Tensor], y: Tensor) -> Callable[[], None]:
    """A forward and a backward pass to the network's parameters."""

    def both() -> None:
        network.zero_grad()
        loss(run(), y).backward()

    return both


def passes(hidden: int, batch: int) -> dict[str, list[Contender]]:
    """Passes through networks with their first weights: `forward` alone, and with the `backward` pass."""
    network, dropped = mlp(784, hidden, hidden, 10), models.MLP(784, 10, hidden=(hidden, hidden), dropout=0.5)
    scales = {name: torch.full_like(value, 0.01, requires_grad=True) for name, value in network.named_parameters()}
    bnn = BayesianNetwork(network, likelihoods.Categorical())
    x, y = torch.rand(batch, 784), torch.randint(10, (batch,))

    def random_weights(variance: float | None = None) -> Tensor:
        values = {name: Moments(value, scales[name].square()) for name, value in network.named_parameters()}
        return bnn.output(values, Moments(x, variance))

    def by_hand() -> Moments:
        mean, variance = forward(network, x, torch.full_like(x, 0.01))
        return Moments(mean, variance)

    runs: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "plain": (network, lambda: network(x)),
        "moments, nothing uncertain": (network, lambda: propagate(network, x)),
        "moments, input variance 0.01": (network, lambda: propagate(network, x, 0.01)),
        "moments, input variance 0, as a number": (network, lambda: propagate(network, x, 0.0)),
        "the same with 0.01, written by hand": (network, by_hand),
        "moments, dropout of hidden units": (dropped, lambda: propagate(dropped, x)),
        "moments, random weights": (network, random_weights),
        "moments, random weights, input variance 0.01": (network, partial(random_weights, 0.01)),
        "sensitivities, input variance 0.01": (network, lambda: propagate(network, x, 0.01, covariance="sensitivity")),
        "sensitivities, dropout of hidden units": (dropped, lambda: propagate(dropped, x, covariance="sensitivity")),
    }
    return {
        "forward": [Contender(name, torch.no_grad()(run)) for name, (_, run) in runs.items()],
        "forward and backward": [Contender(name, backward(module, run, y)) for name, (module, run) in runs.items()],
    }


def full(hidden: int, batch: int) -> list[Contender]:
    """Full covariances, on a batch that leaves them room, beside the other ways."""
    network = models.MLP(784, 10, hidden=(hidden, hidden), dropout=0.5).eval()
    x = torch.rand(batch, 784)
    runs: dict[str, Callable[[], Tensor]] = {"plain": lambda: network(x)}
    runs |= {way: partial(propagate, network, x, covariance=way) for way in WAYS}
    return [Contender(name, torch.no_grad()(run)) for name, run in runs.items()]


def steps(hidden: int, batch: int) -> list[Contender]:
    """Optimizer steps of a network with random weights: sampled, and by moments."""
    x, y = torch.rand(4 * batch, 784), torch.randint(10, (4 * batch,))
    make = partial(mlp, 784, hidden, hidden, 10)
    own = partial(bnnzoo_contender, x=x, y=y, batch_size=batch)
    return [
        Contender("plain PyTorch, fused Adam", plain_step(make(), x[:batch], y[:batch], LR)),
        own("MeanField, sampled ELBO, local", make(), guide=MEAN_FIELD),
        own("MeanField, MomentELBO", make(), guide=MEAN_FIELD, objective=objectives.MomentELBO()),
        own(
            "MeanField, MomentELBO, alpha=1, simplified softmax",
            make(),
            guide=MEAN_FIELD,
            objective=objectives.MomentELBO(1.0, softmax="simplified"),
        ),
    ]


def dropout_steps(hidden: int, batch: int) -> list[Contender]:
    """Optimizer steps of a network with dropout at p = 0.5, by how it is met in training, and of one without."""
    x, y = torch.rand(4 * batch, 784), torch.randint(10, (4 * batch,))

    def network(rate: float) -> models.MLP:
        return models.MLP(784, 10, hidden=(hidden, hidden), dropout=rate)

    own = partial(bnnzoo_contender, x=x, y=y, batch_size=batch, guide=guides.Map)
    methods = [method for method in METHODS.values() if not method.normalized]
    by_hand = analytic_dropout_step(network(0.5).layers, x[:batch], y[:batch], LR)
    return [
        *(own(m.title, network(0.5 if m.noisy else 0.0), objective=m.objective()) for m in methods),
        Contender("analytic, -log q(y), written by hand", by_hand),
    ]


def normalized_steps(batch: int) -> list[Contender]:
    """Passes to the parameters of LeNet by normalization; then its propagated statistics, and a pass forward, alone."""
    x = torch.rand(batch, 1, 28, 28)
    mean, variance = x.mean().item(), x.var().item()
    plain = lenet("leaky ReLU")

    def step(network: nn.Module) -> Callable[[], object]:
        return lambda: network(x).logsumexp(1).sum().backward()

    networks = {kind: normalized(lenet("leaky ReLU", norm), mean, variance) for kind, norm in KINDS.items()}
    return [
        *(Contender(f"normalization: {kind}", step(network)) for kind, network in networks.items()),
        Contender("statistics alone", torch.no_grad()(partial(moments.statistics, plain, mean, variance, (28, 28)))),
        Contender("forward alone", torch.no_grad()(partial(plain, x))),
    ]


def timed(contenders: list[Contender], arguments: Any) -> list[Contender]:
    """The contenders, timed in turns."""
    rounds, slot = (2, 0.0) if arguments.smoke else (arguments.rounds, 0.02)
    interleave(contenders, rounds, slot, 1 if arguments.smoke else 3, CLOCKS[arguments.clock])
    return contenders


def times(title: str, contenders: Sequence[Contender], against: int = 0) -> str:
    """A table of times and of ratios to the first contender, and to another one if `against` tells which."""
    header = [title, "ms", f"ratio to {contenders[0].name}"]
    header += [f"to {contenders[against].name}"] if against else []
    rows = []
    for contender in contenders:
        cells = [contender.name, f"{contender.median * 1e3:.3g}", f"{ratio(contender, contenders[0]):.2f}"]
        rows.append(cells + ([f"{ratio(contender, contenders[against]):.2f}"] if against else []))
    return table(header, rows)


def images_of(smoke: bool) -> Images:
    """MNIST with a tenth held out, or, to smoke, enlarged digits."""
    if smoke:
        return held_out(enlarged_digits())
    split = data.load("mnist").split()
    return held_out((split.train, split.test))


def dropout_network(rate: float, hidden: int, part: data.Dataset, epochs: int, seed: int) -> bnnzoo.Posterior:
    """The network trained with sampled dropout, to a point."""
    torch.manual_seed(seed)
    network = models.MLP(784, 10, hidden=(hidden, hidden), dropout=rate)
    bnn = BayesianNetwork(network, likelihoods.Categorical(), priors.Normal(0.0, 10**0.5))
    return bnnzoo.fit(bnn, guides.Map(bnn), part, epochs=epochs, batch_size=BATCH, seed=seed, progress=False)


def halves(network: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """An MLP's layers before its first dropout layer, which all draws share, and those from there on."""
    layers = list(network.layers)
    first = next(index for index, layer in enumerate(layers) if isinstance(layer, nn.Dropout))
    return nn.Sequential(*layers[:first]), nn.Sequential(*layers[first:])


@torch.no_grad()
def sampled(network: nn.Module, x: Tensor, draws: int, seed: int) -> Moments:
    """Mean and variance of the logits over so many passes of an MLP with dropout."""
    head, tail = halves(network)
    repeats = math.gcd(REPEATS, draws)
    repeated = head(x).repeat(repeats, 1)
    part = propagate(tail, repeated, mode="sample", num_samples=draws // repeats, seed=seed)
    means = part.loc.view(repeats, *x.shape[:1], -1)
    inner = part.variance.view_as(means).mean(0)
    return Moments(means.mean(0), inner + means.var(0, unbiased=False))


def worth(found: Moments, reference: Moments, draws: int) -> dict[str, float]:
    """Errors of propagated moments in units of the true standard deviation, and the sampled passes that they equal.

    Args:
        found: The propagated moments.
        reference: Those over sampled passes.
        draws: How many passes; the mean squares of the reference's own errors, 1/R and 1/(2R), are subtracted.

    Returns:
        `mean` and `std`, root mean square errors, 0 where the reference cannot tell; `bias`, the geometric mean of σ
        over the true one; `mean_passes` and `std_passes`, infinite where it cannot tell.
    """
    scale = reference.scale
    mean = ((found.loc - reference.loc) / scale).square().mean().item() - 1 / draws
    std = (found.scale / scale - 1).square().mean().item() - 1 / (2 * draws)
    return {
        "mean": math.sqrt(max(mean, 0.0)),
        "std": math.sqrt(max(std, 0.0)),
        "bias": (found.scale / scale).log().mean().exp().item(),
        "mean_passes": 1 / mean if mean > 0 else math.inf,
        "std_passes": 1 / (2 * std) if std > 0 else math.inf,
    }


@torch.no_grad()
def comparison(network: nn.Module, x: Tensor, draws: int, arguments: Any) -> list[dict[str, Any]]:
    """How many sampled passes each way of propagating is worth in a network, and the time of so many.

    A sampled pass is that of the layers that noise reaches: what all draws share is computed once.
    """
    reference = sampled(network, x, draws, arguments.seed)
    records = []
    for way in WAYS:
        rows = x.split(8 if way == "full" else len(x))
        parts = [propagate(network, part, covariance=way) for part in rows]
        found = Moments(torch.cat([part.loc for part in parts]), torch.cat([part.variance for part in parts]))
        batch = rows[0] if way == "full" else x
        head, tail = halves(network)
        tail.train()
        hidden = head(batch)
        contenders = [
            Contender("one sampled pass", torch.no_grad()(partial(tail, hidden))),
            Contender(way, torch.no_grad()(partial(propagate, network, batch, covariance=way))),
        ]
        one, own = timed(contenders, arguments)
        network.eval()
        records.append({"way": way, "batch": len(batch), **worth(found, reference, draws), "cost": ratio(own, one)})
    return records


def report(rate: float, draws: int, records: Sequence[dict[str, Any]]) -> str:
    """The table of one network."""
    header = [
        f"p = {rate:g}, {draws:,} passes for reference",
        "RMS error of the mean / σ",
        "of σ / σ",
        "geometric mean",
    ]
    header += ["passes of the same error of the mean", "of σ", "cost in passes", "faster for the mean", "for σ"]

    def number(value: float, most: float) -> str:
        if value > most:  # beyond what the reference can tell
            return f"more than {most:,.0f}"
        return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"

    rows = []
    for r in records:
        cells = [r["way"], f"{r['mean']:.4f}", f"{r['std']:.3f}", f"{r['bias']:.3f}"]
        cells += [number(r[key], draws) for key in ("mean_passes", "std_passes")]
        cells.append(f"{r['cost']:.1f} (batch {r['batch']})")
        cells += [number(r[key] / r["cost"], draws / r["cost"]) for key in ("mean_passes", "std_passes")]
        rows.append(cells)
    return table(header, rows)


def arguments_of(description: str, rounds: int, epochs: int, least_draws: int) -> argparse.Namespace:
    """The arguments of a comparison with sampled passes of networks trained with dropout.

    Args:
        description: What the benchmark does.
        rounds: Of the timings, unless they are given.
        epochs: Of the trainings, unless they are given.
        least_draws: Sampled passes of a smoke run.
    """
    options = parser(description)
    options.add_argument("--rounds", type=int, default=rounds, help="of the timings")
    options.add_argument("--hidden", type=int, default=1000, help="units of each hidden layer")
    options.add_argument("--epochs", type=int, default=epochs, help="of the networks trained with dropout")
    options.add_argument("--draws", type=int, default=20_000, help="sampled passes of the reference")
    options.add_argument("--images", type=int, default=32, help="test images of the comparison")
    options.add_argument("--keep", type=Path, help="folder of fits, to go on from")
    arguments = parsed(options, ("rounds", "hidden", "epochs", "draws", "images"))
    if arguments.smoke:
        arguments.hidden, arguments.epochs, arguments.draws, arguments.images = 20, 1, least_draws, 8
    return arguments


def main() -> None:
    arguments = arguments_of(__doc__.splitlines()[0], rounds=30, epochs=2, least_draws=32)
    start(arguments)
    print(describe(environment(arguments)), "\n")
    hidden = arguments.hidden
    name = f"MLP 784-{hidden}-{hidden}-10"
    results: dict[str, Any] = {}

    def show(key: str, title: str, contenders: list[Contender], against: int = 0) -> None:
        print(times(title, timed(contenders, arguments), against), "\n", flush=True)
        results[key] = [{"contender": c.name, "seconds": c.median} for c in contenders]

    for kind, contenders in passes(hidden, BATCH).items():
        show(kind, f"{name}, batch {BATCH}, {kind}", contenders)
    show("steps", f"{name}, batch {BATCH}, one step", steps(hidden, BATCH), against=1)
    title = f"{name}, p = 0.5, batch {BATCH}, one step"
    show("dropout", title, dropout_steps(hidden, BATCH), against=1)
    show("normalization", f"LeNet, batch {BATCH}, forward and backward", normalized_steps(BATCH))
    show("full", f"{name} with dropout, batch 8, forward", full(hidden, 8))
    images = images_of(arguments.smoke)
    with tempfile.TemporaryDirectory() as temporary:
        keep = Path(temporary) if arguments.keep is None else arguments.keep
        keep.mkdir(parents=True, exist_ok=True)
        for rate in RATES:
            make = partial(dropout_network, rate, hidden, images.train, arguments.epochs, arguments.seed)
            network = trained_network(kept(keep / f"dropout-{rate:g}.bnn", make))
            x = images.test.x[: arguments.images].flatten(1)
            results[f"p={rate:g}"] = comparison(network, x, arguments.draws, arguments)
            print(report(rate, arguments.draws, results[f"p={rate:g}"]), "\n", flush=True)
    write(arguments, results)


if __name__ == "__main__":
    main()
