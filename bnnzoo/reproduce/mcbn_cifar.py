"""CIFAR-10: what Monte Carlo batch normalization gains by the number of its draws (Teye et al. 2018, Table 2)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, Posterior, data, guides, likelihoods, models, priors
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.fits import trained
from bnnzoo.reproduce.mcbn_paper import PAPER

TABLE_2: Mapping[int, float] = {1: -0.36, 2: -0.32, 4: -0.30, 8: -0.29, 16: -0.29, 32: -0.28, 64: -0.28, 128: -0.28}
"""The paper's mean log likelihood of test images, in nats, by the number of forward passes."""

SOFTMAX = -0.32
"""The paper's, of ordinary batch normalization with running statistics."""

WEIGHT_DECAY = 2e-4
"""Of the mean loss: (λ / 2) ‖w‖², so that the prior's variance is 1 / (N λ)."""


def log_likelihoods(log_probs: Tensor, passes: int) -> Tensor:
    """Log likelihood of each datum under the mean of `passes` draws' probabilities, averaged over groups of draws.

    Args:
        log_probs: Log probability of each datum's class for each draw, [T, N].
        passes: Draws of a group, a divisor of T; each draw is in one group.

    Returns:
        [N], in nats.
    """
    groups = log_probs.unflatten(0, (-1, passes))
    return (groups.logsumexp(1) - math.log(passes)).mean(0)


def with_running_statistics(posterior: Posterior) -> nn.Module:
    """The network as ordinary training leaves it: its batch norm takes running statistics.

    Args:
        posterior: Of `guides.BatchNorm`, with one chain.
    """
    network = copy.deepcopy(posterior.bnn.network).eval()
    guide: Any = posterior.guide
    network.load_state_dict({name: q.mean for name, q in guide.distributions().items()}, strict=False)
    return network


def _data(context: Context) -> data.Split:
    if context.scale == "smoke":
        return data.load("digits")[:300].split(100, seed=context.seed)
    split = data.load("cifar10").split()
    rows, tests = context.pick(0, 10_000, len(split.train)), context.pick(0, 500, len(split.test))
    train = split.train if rows == len(split.train) else split.train.split(rows, seed=context.seed).test
    return data.Split(train, split.test[:tests])


def table_2(context: Context) -> Result:
    """Trains one network, and predicts with more and more of its batches."""
    passes = [count for count in TABLE_2 if count <= context.pick(4, 128, 128)]
    depth, width = context.pick((8, 4), (14, 8), (32, 16))
    epochs = context.pick(1, 12, 200)
    train, test = _data(context)
    torch.manual_seed(context.seed)
    network = models.ResNet(train.input_shape[0], 10, depth, width)
    prior = priors.Normal(0.0, 1.0 / math.sqrt(WEIGHT_DECAY * len(train)))
    bnn = BayesianNetwork(network, likelihoods.Categorical(), prior)
    posterior = trained(
        context.fits / f"resnet{depth}-cifar10-mcbn.bnn",
        bnn,
        guides.BatchNorm(bnn),
        train,
        say=context.say,
        epochs=epochs,
        batch_size=32,
        lr=0.1 / len(train),  # the paper's is for the mean loss; ours is the sum
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        seed=context.seed,
    )
    with torch.no_grad():
        plain = with_running_statistics(posterior)
        logits = torch.cat([plain(part) for part in test.x.split(500)])
    softmax = logits.log_softmax(1).gather(1, test.y[:, None])[:, 0].double()
    prediction = posterior.predict(test.x, num_samples=passes[-1], seed=context.seed)
    drawn = prediction.distribution.log_prob(test.y)[0].double()
    found = {count: log_likelihoods(drawn, count) for count in passes}
    correct = {
        "softmax": (logits.argmax(1) == test.y).double().mean().item(),
        "mcbn": (prediction.classes == test.y).double().mean().item(),
    }
    return _result(context, found, softmax, correct, f"ResNet-{depth} of width {width}, {len(train)} images, {epochs}")


def _result(
    context: Context, found: Mapping[int, Tensor], softmax: Tensor, correct: Mapping[str, float], trained_as: str
) -> Result:
    def cell(values: Tensor) -> str:
        return f"{values.mean():.3f} ± {values.std() / math.sqrt(len(values)):.3f}"

    rows = [["softmax", cell(softmax), "", f"{SOFTMAX:.2f}", ""]]
    for count, values in found.items():
        theirs = TABLE_2[count]
        rows.append([str(count), cell(values), cell(values - softmax), f"{theirs:.2f}", f"{theirs - SOFTMAX:+.2f}"])
    header = ["passes T", "ours", "ours - softmax", "paper", "paper - softmax"]
    notes = [
        f"{trained_as} epochs of batches of 32, learning rate 0.1 falling along a cosine, no augmentation (the paper: "
        "ResNet-32 of width 16, 50,000 images, at 0.1; how long, and whether augmented, it does not say).",
        f"Right: {correct['softmax']:.1%} with running statistics, {correct['mcbn']:.1%} with {max(found)} passes.",
        "Mean over test images with its standard error over them; for T passes the mean over all groups of T draws.",
    ]
    if context.scale != "paper":
        notes.append("A small network trained briefly: compare the last two columns' differences, not the levels.")
    numbers = {
        "softmax": softmax.mean().item(),
        "mcbn": {str(count): each.mean().item() for count, each in found.items()},
        "accuracy": dict(correct),
    }
    caption = f"Log likelihood of {len(softmax)} test images (nats an image, higher is better)"
    return Result([Table(caption, header, rows)], notes=notes, values=numbers)


ENTRIES = (
    Entry(
        "mcbn/table-2",
        "CIFAR-10: log likelihood by the number of forward passes",
        f"{PAPER}, Table 2",
        table_2,
        ("cifar10",),
        minutes=15.0,
    ),
)
