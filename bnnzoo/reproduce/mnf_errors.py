"""MNF paper (Louizos and Welling, 2017): test errors (Table 2), pruned weights (section 4.1), a rotated 3 (Figure 1).

Of the paper's other items, Table 1 is the list of methods, `mnf_lenet.METHODS`; Figures 2 and 3 are entropies of what a
network never saw (`mnf_ood`), Figures 4 and 5 adversarial examples (`mnf_adversarial`), Figure 6 the toy (`mnf_toy`).
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

from bnnzoo import guides
from bnnzoo.evaluation import plot_rotated, rotated, score
from bnnzoo.posterior import Posterior
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.fits import recorded
from bnnzoo.reproduce.mnf_lenet import METHODS, PAPER, TASKS, images, posterior_of, size_of

SOURCE = "Louizos & Welling 2017 (MNF)"
ANGLES = tuple(range(0, 181, 15))
SHOWN = ("map", "mnf")
"""The panels of Figure 1."""

_CUT = {
    "mnist": "6 epochs (the ensemble 5 members of 2 epochs, no adversarial examples) and 20 draws; the paper does not "
    "tell its epochs, has 10 members trained on adversarial examples, and takes 100 draws.",
    "cifar5": "a LeNet of 32 filters and 200 hidden units where the paper's has 192 and 1000, 8 epochs (the ensemble 5 "
    "members of 3 epochs, no adversarial examples), 20 draws; the paper does not tell its epochs and takes 100 draws.",
}


def errors(context: Context, task: str) -> Result:
    """Table 2: the test error of a LeNet by method.

    Args:
        context: Of the run.
        task: `"mnist"` or `"cifar5"`.
    """
    test = images(context, task)[1]
    scores = {method: _scored(context, task, method) for method in PAPER}
    header = ["", "epochs", "draws", "test error, %", "paper, %", "PLL, nats", "ECE", "entropy, nats", "fit, CPU s"]
    rows = []
    for method, found in scores.items():
        error = found["error"]
        times = f"{found['setting']['chains']} x " if METHODS[method].ensemble else ""
        rows.append(
            [
                METHODS[method].label,
                f"{times}{found['setting']['epochs']}",
                f"{times}{found['setting']['draws']}",
                # Binomial: of so many test images.
                f"{100 * error:.2f} ± {100 * math.sqrt(error * (1 - error) / len(test)):.2f}",
                f"{TASKS[task].errors[method]:g}",
                *(f"{found[name]:.4f}" for name in ("pll", "ece", "entropy")),
                f"{found['fit_seconds']:.0f}",
            ]
        )
    table = Table(f"LeNet on {TASKS[task].title}, {len(test)} test images", header, rows)
    notes = ["± is the binomial standard error of the test images; the paper gives none, and one seed is one fit."]
    return Result([table], notes=notes + _cut(context, task), values=scores)


def _scored(context: Context, task: str, method: str) -> dict[str, Any]:
    """Scores of a method on the test images, kept."""
    size = size_of(context, task, METHODS[method].ensemble)
    train, test = images(context, task)
    posterior = posterior_of(context, task, method, train, size)
    draws = _draws(posterior, size.draws)
    setting = {"epochs": size.epochs, "draws": draws, "chains": posterior.chains, "network": size.network}

    def make() -> dict[str, Any]:
        begin = time.process_time()
        prediction = posterior.predict(test.x, num_samples=draws, seed=context.seed)
        found = score(prediction.pooled, test.y)
        scores = {str(name): value.item() for name, value in found.items()}
        return {**scores, "fit_seconds": posterior.info["seconds"], "predict_seconds": time.process_time() - begin}

    return recorded(context.folder / f"{method}.json", setting, make, context.say)


def _draws(posterior: Posterior, count: int) -> int:
    """As many draws, or the single one that there is."""
    return 1 if isinstance(posterior.guide, guides.Map) else count


def pruned(context: Context) -> Result:
    """Section 4.1: the share of weights that the log-uniform prior makes noise around 0.

    Args:
        context: Of the run.
    """
    values: dict[str, dict[str, float]] = {}
    rows = []
    for task, given in TASKS.items():
        train = images(context, task)[0]
        posterior = posterior_of(context, task, "fflu", train, size_of(context, task))
        shares = {name: 100 * share.item() for name, share in posterior.sparsity().sites.items() if "weight" in name}
        values[task] = shares
        ours, theirs = ([f"{value:.1f}" for value in each] for each in (shares.values(), given.pruned))
        rows += [[given.title, "ours", *ours], ["", "paper", *theirs]]
    header = ["", "", "first convolution", "second", "hidden layer", "output layer"]
    table = Table("FFLU: weights with log σ² - log μ² ≥ 5, %", header, rows)
    notes = [note for task in TASKS for note in _cut(context, task)]
    if context.scale == "cpu":
        notes.append("Pruning takes many epochs: weights leave slowly under a KL whose weight has just reached 1.")
    return Result([table], notes=notes, values=values)


def rotated_three(context: Context) -> Result:
    """Figure 1: class probabilities of a 3 as it turns, of weight decay and of MNF.

    Args:
        context: Of the run.
    """
    train, test = images(context, "mnist")
    three = test.x[int((test.y == 3).nonzero()[0])]
    turned = rotated(three, ANGLES)
    predictions = {}
    for method in SHOWN:
        posterior = posterior_of(context, "mnist", method, train, size_of(context, "mnist"))
        draws = _draws(posterior, context.pick(2, 100, 100))
        predictions[METHODS[method].label] = posterior.predict(turned, num_samples=draws, seed=context.seed)
    rows = []
    values: dict[str, Any] = {}
    for label, prediction in predictions.items():
        probs = prediction.probs
        wrong = probs.clone()
        wrong[:, 3] = 0.0
        values[label] = probs.tolist()
        rows.append([label, *(f"{100 * value:.0f}" for value in wrong.max(1).values.tolist())])
    table = Table("The highest probability of a wrong class, %", ["", *(f"{angle}°" for angle in ANGLES)], rows)
    figure = plot_rotated(predictions, turned, list(ANGLES))
    notes = ["The paper's figure has no numbers: weight decay is certain of wrong classes, MNF is not."]
    return Result([table], {"rotated": figure}, notes + _cut(context, "mnist"), values)


def _cut(context: Context, task: str) -> list[str]:
    return [f"{TASKS[task].title}: {_CUT[task]}"] if context.scale == "cpu" else []


ENTRIES = (
    Entry(
        "mnf/table-2-mnist",
        "Test error of LeNet on MNIST by method",
        f"{SOURCE}, Table 2, first row",
        partial(errors, task="mnist"),
        data=("mnist",),
        minutes=25,
    ),
    Entry(
        "mnf/table-2-cifar5",
        "Test error of LeNet on five classes of CIFAR-10 by method",
        f"{SOURCE}, Table 2, second row",
        partial(errors, task="cifar5"),
        data=("cifar10",),
        minutes=40,
    ),
    Entry(
        "mnf/sparsity",
        "Weights that a log-uniform prior prunes",
        f"{SOURCE}, section 4.1",
        pruned,
        data=("mnist", "cifar10"),
        minutes=12,
    ),
    Entry(
        "mnf/figure-1",
        "Class probabilities of a 3 as it turns",
        f"{SOURCE}, Figure 1",
        rotated_three,
        data=("mnist",),
        minutes=11,
    ),
)
