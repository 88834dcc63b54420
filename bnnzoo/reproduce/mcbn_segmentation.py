"""Uncertainty of segmentations by Monte Carlo batch normalization (Teye et al. 2018, Figure 2, right, and Figure 6)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import jaccard_score, roc_auc_score

from bnnzoo import BayesianNetwork, Prediction, data, guides, likelihoods, models, priors
from bnnzoo.evaluation import plot_segmentation
from bnnzoo.reproduce.entry import Context, Entry, Result, Table, plus_minus
from bnnzoo.reproduce.fits import trained
from bnnzoo.reproduce.mcbn_cifar import with_running_statistics
from bnnzoo.reproduce.mcbn_paper import PAPER

BATCHES = (10, 36)
"""Images of a mini-batch at inference: the paper's for CamVid and for PASCAL-VOC."""

PASSES = 20
"""Forward passes, as in the paper."""


def at_edges(labels: np.ndarray) -> np.ndarray:
    """Which pixels have a neighbor of another class, of the eight around.

    Args:
        labels: [N, H, W].

    Returns:
        [N, H, W], bool.
    """
    around = {"size": (1, 3, 3), "mode": "nearest"}
    return ndimage.maximum_filter(labels, **around) != ndimage.minimum_filter(labels, **around)


def described(prediction: Prediction, labels: np.ndarray) -> dict[str, list[float] | float]:
    """Scores of pixels, and how unsure the prediction is of those at edges and of the others.

    Args:
        prediction: Of labels [N, H, W].
        labels: The true ones.

    Returns:
        Lists have a value for each image: `accuracy`, `pll` (mean log probability of a pixel's class, nats), the mean
        `entropy` and `information` (mutual information, nats) at edges and elsewhere, where an image has such pixels;
        `iou` is the mean intersection over union of the classes, `auroc` the probability that the entropy of a wrong
        pixel is above that of a right one, over all images.
    """
    probs = prediction.probs.double().numpy()
    classes, edge = probs.argmax(-1), at_edges(labels)
    log_prob = np.log(np.take_along_axis(probs, labels[..., None], -1)[..., 0])
    found: dict[str, list[float] | float] = {
        "accuracy": (classes == labels).mean((1, 2)).tolist(),
        "pll": log_prob.mean((1, 2)).tolist(),
        "iou": float(jaccard_score(labels.reshape(-1), classes.reshape(-1), average="macro")),
        "auroc": float(roc_auc_score((classes != labels).reshape(-1), prediction.entropy.numpy().reshape(-1))),
    }
    for name, values in (("entropy", prediction.entropy), ("information", prediction.mutual_information)):
        for place, mask in (("edges", edge), ("elsewhere", ~edge)):
            pairs = zip(values.double().numpy(), mask, strict=True)
            found[f"{name} {place}"] = [float(image[where].mean()) for image, where in pairs if where.any()]
    return found


def segmentation(context: Context) -> Result:
    """Trains one network, and runs it with batches of both sizes."""
    train = data.toys.shapes(context.pick(60, 4000, 10_000), seed=2 * context.seed)
    test = data.toys.shapes(context.pick(12, 300, 1000), seed=2 * context.seed + 1)
    epochs, depth = context.pick(2, 60, 100), 3
    torch.manual_seed(context.seed)
    network = models.EncoderDecoder(3, len(data.info("shapes").class_names or ()), context.pick(4, 16, 32), depth)
    bnn = BayesianNetwork(network, likelihoods.Categorical(), priors.Normal(0.0, 1.0))
    fitted = trained(
        context.fits / "shapes-mcbn.bnn",
        bnn,
        guides.BatchNorm(bnn, num_statistics=1),  # what counts are those of other batch sizes, below
        train,
        say=context.say,
        epochs=epochs,
        batch_size=BATCHES[-1],
        lr=5e-3,
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        seed=context.seed,
    )
    plain = with_running_statistics(fitted)
    with torch.no_grad():
        logits = torch.cat([plain(part) for part in test.x.split(100)]).movedim(1, -1)
    predictions = {
        "running statistics": Prediction({"logits": logits[None, None]}, bnn.likelihood.family, "classification")
    }
    statistics = context.pick(5, 100, 200)
    for size in BATCHES:
        posterior = guides.BatchNorm.from_trained(
            plain, train, batch_size=size, num_statistics=statistics, seed=context.seed
        )
        predictions[f"MCBN, batches of {size}"] = posterior.predict(test.x, num_samples=PASSES, seed=context.seed)
    found = {name: described(prediction, test.y.numpy()) for name, prediction in predictions.items()}
    figure = plot_segmentation(
        predictions[f"MCBN, batches of {BATCHES[-1]}"], test.x, test.y, rows=range(4), class_names=test.class_names
    )
    notes = [
        "Images and labels are generated (`data.toys.shapes`): CamVid and PASCAL-VOC are not at hand. An "
        f"encoder-decoder of depth {depth}, {len(train)} images, {epochs} epochs, batches of {BATCHES[-1]}; statistics "
        "of all layers are drawn (the paper: Bayesian SegNet from the model zoo, those of its first two blocks only).",
        "The paper shows maps and no numbers: unsure near the edges of objects, and better with the larger batches. At "
        "edges: pixels with a neighbor of another class. Means over images with their standard errors.",
        "AUROC: the probability that the entropy of a wrong pixel is above that of a right one.",
    ]
    values = {name: {key: float(np.mean(value)) for key, value in each.items()} for name, each in found.items()}
    return Result([_table(found, len(test))], {"segmentation": figure}, notes, values)


def _table(found: dict[str, dict[str, Any]], count: int) -> Table:
    columns = {
        "accuracy": ("accuracy", ".4f"),
        "pll": ("log likelihood (nats a pixel)", ".4f"),
        "entropy edges": ("entropy at edges", ".3f"),
        "entropy elsewhere": ("elsewhere", ".3f"),
        "information edges": ("mutual information at edges", ".4f"),
        "information elsewhere": ("elsewhere", ".4f"),
    }
    rows = [
        [
            name,
            *(plus_minus(each[key], form) for key, (_, form) in columns.items()),
            *(f"{each[key]:.3f}" for key in ("iou", "auroc")),
        ]
        for name, each in found.items()
    ]
    header = ["statistics", *(title for title, _ in columns.values()), "mean IoU", "AUROC of errors"]
    return Table(f"Pixels of {count} generated test images; {PASSES} passes", header, rows)


ENTRIES = (
    Entry(
        "mcbn/figure-6",
        "Segmentation: where in an image the network is unsure (generated shapes)",
        f"{PAPER}, Figures 2 (right) and 6",
        segmentation,
        minutes=9.0,
    ),
)
