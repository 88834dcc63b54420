"""What approximate means of logistic Bernoulli units are worth in belief networks, and those of the softmax.

    python benchmarks/logistic_units.py

- Sigmoid belief networks with random weights against the exact marginals of enumeration.
- Class probabilities of Gaussian logits against Monte Carlo.

Single units: `bnnzoo reproduce moments/table-1` and `moments/figure-c.2`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from common import describe, environment, parser, start, table, write

from bnnzoo import models
from bnnzoo.moments import propagate
from bnnzoo.moments.softmax import log_softmax
from bnnzoo.reproduce.moments_units import KINDS

SETTING: dict[str, Any] = {
    "networks": 20,  # of random weights, in each row
    "inputs": 50,  # of each network
    "logits": 20,  # means and variances, in each row
    "draws": 100_000,  # of the logits
}


def belief_networks(sizes: Sequence[int], scale: float, observed: bool, seed: int) -> dict[str, float]:
    """Mean absolute errors of the last layer's probabilities over networks with weights and biases N(0, scale²)."""
    torch.manual_seed(seed)
    errors: dict[str, list[float]] = {}
    for _ in range(SETTING["networks"]):
        network = models.SigmoidBeliefNetwork(sizes).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(0, scale)
        x = torch.rand(SETTING["inputs"], sizes[0], dtype=torch.float64)
        x = x.round() if observed else x
        with torch.no_grad():
            exact = network.marginals(x)[-1]
            found = {"AP1": propagate(network, x, mode="ap1").loc}
            for kind, name in KINDS.items():
                for layer in network.layers[2::2]:
                    layer.approximation = kind
                found[name] = propagate(network, x).loc
        for name, value in found.items():
            errors.setdefault(name, []).append((value - exact).abs().mean().item())
    return {name: float(np.mean(each)) for name, each in errors.items()}


def class_probabilities(classes: int, std: float, seed: int) -> dict[str, float]:
    """Mean KL divergence, in nats, from the mean softmax of Gaussian logits to its approximations.

    Means are N(0, 4); standard deviations are uniform from half to one and a half times `std`.
    """
    torch.manual_seed(seed)
    mean = 2 * torch.randn(SETTING["logits"], classes, dtype=torch.float64)
    scale = std * (0.5 + torch.rand(SETTING["logits"], classes, dtype=torch.float64))
    totals = torch.zeros_like(mean)
    blocks = max(1, SETTING["draws"] // 2000)
    for _ in range(blocks):
        noise = torch.randn(2000, *mean.shape, dtype=torch.float32)
        totals += (mean.float() + scale.float() * noise).softmax(-1).double().sum(0)
    truth = totals / (2000 * blocks)
    found = {"AP1": mean.log_softmax(-1)}
    found |= {
        kind: log_softmax(mean, scale.square(), -1, kind) for kind in ("normal", "logistic", "simplified", "exact")
    }
    return {
        name: (torch.special.xlogy(truth, truth) - truth * log_q).sum(-1).mean().item() for name, log_q in found.items()
    }


def main() -> None:
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    if arguments.smoke:
        SETTING.update(networks=1, inputs=2, logits=1, draws=2000)
    start(arguments)
    networks = {
        (sizes, observed, scale): belief_networks(sizes, scale, observed, arguments.seed)
        for sizes in ((10, 10, 10), (5, 5, 5, 5))
        for observed in (True, False)
        for scale in (0.5, 1.0, 2.0, 4.0)
    }
    classes = {
        (count, std): class_probabilities(count, std, arguments.seed)
        for count in (2, 10, 100)
        for std in (0.1, 0.5, 1.0, 2.0, 4.0, 10.0)
    }
    print("\n" + describe(environment(arguments)), "\n")
    header = ["AP1", "AP2", "AP2a", "AP2b", "PEA"]
    rows = [
        [
            "-".join(map(str, sizes)),
            "observed" if observed else "uncertain",
            f"{scale:g}",
            *(f"{row[n]:.4f}" for n in header),
        ]
        for (sizes, observed, scale), row in networks.items()
    ]
    print(table(["network", "inputs", "scale of weights", *header], rows), "\n")
    header = ["AP1", "normal", "logistic", "simplified", "exact"]
    rows = [[count, f"{std:g}", *(f"{row[name]:.1e}" for name in header)] for (count, std), row in classes.items()]
    print(table(["classes", "std of logits", *header], rows))
    write(arguments, {
        "setting": SETTING,
        "networks": [[sizes, observed, scale, row] for (sizes, observed, scale), row in networks.items()],
        "classes": [[count, std, row] for (count, std), row in classes.items()],
    })  # fmt: skip


if __name__ == "__main__":
    main()
