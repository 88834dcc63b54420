"""An image with noise through a trained LeNet: Figure 1 of Shekhovtsov & Flach 2018.

Of the paper's other items, Tables 2 and 3 are in `moments_accuracy`, Table 4 in `moments_normalization`, Table 1 and
Figures C.1 to C.3 in `moments_units`, Figures 2, 3 and C.4 in `moments_curves`, Figure 4 in `moments_dropout`, Figures
5 and D.1 in `moments_stability`. The relative times of appendix D.1 are measured by `benchmarks/moments_time.py`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bnnzoo.evaluation.style import PALETTE, STYLES, styled
from bnnzoo.moments import Moments, propagate
from bnnzoo.moments.softmax import log_softmax
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.moments_nets import images_of, trained_net
from bnnzoo.reproduce.moments_paper import PAPER

VARIANCE = 0.1
"""Of the noise on the pixels."""

SHOWN = 3
"""Classes with a histogram: those of the highest mean probability over the draws."""


def draw(image: Tensor, draws: Tensor, certain: Tensor, moments: Moments, shown: list[int]) -> Figure:
    """The image, histograms of its logits under noise, and what is propagated.

    Args:
        image: [28, 28], with noise.
        draws: Logits under noise, [S, K].
        certain: Logits of the clean image (AP1), [K].
        moments: Propagated logits (AP2), [K].
        shown: Classes.
    """
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 3))
    left.imshow(image.numpy(), cmap="gray")
    left.set(title="the image with noise", xticks=[], yticks=[])
    ax = styled(right)
    for label, color, style in zip(shown, PALETTE, STYLES, strict=False):
        ax.hist(
            draws[:, label].numpy(), bins=40, density=True, color=color, alpha=0.3, label=f"logit of {label}: draws"
        )
        mean, std = moments.loc[label].item(), moments.scale[label].item()
        at = np.linspace(mean - 4 * std, mean + 4 * std, 200)
        density = np.exp(-0.5 * ((at - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
        ax.plot(at, density, color=color, linestyle=style, linewidth=1.5, label="AP2")
        ax.axvline(certain[label].item(), color=color, linestyle=style, linewidth=0.9, label="AP1, the clean image")
    ax.set(xlabel="logit", ylabel="density")
    ax.legend(frameon=False, fontsize=8)
    return figure


def figure_1(context: Context) -> Result:
    """Logits and class probabilities of one test image under noise: draws, the clean image, propagated moments."""
    parts = images_of("mnist", context)
    return compared(trained_net("leaky", parts, context), parts[1].x[:1], context)


@torch.no_grad()
def compared(network: nn.Module, x: Tensor, context: Context) -> Result:
    """What draws of the noise, the clean image and propagated moments make of an image.

    Args:
        network: Returns logits [N, K].
        x: The image, [1, 1, 28, 28].
        context: Scale and seed.
    """
    generator = torch.Generator().manual_seed(context.seed)
    noisy = x + VARIANCE**0.5 * torch.randn(context.pick(50, 2000, 2000), *x.shape[1:], generator=generator)
    draws = torch.cat([network(rows) for rows in noisy.split(500)])
    certain, moments = network(x)[0], propagate(network, x, VARIANCE)
    probs = {
        "draws": draws.softmax(1).mean(0),
        "AP1": certain.softmax(0),
        "AP2": log_softmax(moments.loc, moments.variance, 1, "logistic").exp()[0],
    }
    first = Moments(moments.loc[0], moments.variance[0])
    rows = []
    for label in range(len(certain)):
        cells = [f"{draws[:, label].mean():.2f} ± {draws[:, label].std():.2f}", f"{certain[label]:.2f}"]
        cells.append(f"{first.loc[label]:.2f} ± {first.scale[label]:.2f}")
        rows.append([str(label), *cells, *(f"{each[label]:.4f}" for each in probs.values())])
    header = ["class", "logit, draws", "AP1", "AP2", "probability, draws", "AP1", "AP2"]
    caption = f"The first test image under noise of variance {VARIANCE:g}: {len(draws)} draws; means ± deviations"
    shown = probs["draws"].topk(SHOWN).indices.tolist()
    figure = draw(noisy[0, 0], draws, certain, first, shown)
    notes = ["The paper shows another image, and no numbers: AP1 is off the draws' mean, AP2 is nearer."]
    values = {name: each.tolist() for name, each in probs.items()}
    return Result([Table(caption, header, rows)], {"noisy-image": figure}, notes, values)


ENTRIES = (
    Entry(
        "moments/figure-1",
        "An image with noise through LeNet: logits and probabilities",
        f"{PAPER}, Figure 1",
        figure_1,
        ("mnist",),
        minutes=3,
    ),
)
