"""MNF paper (Louizos and Welling, 2017), Figures 2 and 3: entropies of predictions for what a network never saw.

Section 4.1: the LeNets of Table 2, trained on MNIST and shown notMNIST's letters, or on five classes of CIFAR-10
and shown the other five. The figures have no printed numbers; the text makes claims. `mnf/notmnist-guides` asks the
same of every guide of the library, on a small network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro.distributions import Normal

from bnnzoo import data, likelihoods, models, objectives
from bnnzoo.evaluation import held_out_classes, ood_scores, plot_entropy_cdf, uncertainties
from bnnzoo.network import BayesianNetwork
from bnnzoo.posterior import Posterior
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.fits import enlarged_digits, recorded, trained
from bnnzoo.reproduce.mnf_lenet import METHODS, PAPER, TASKS, images, posterior_of, size_of

MEASURES = ("entropy", "mutual_information", "max_probability")
_EFFORT = {"ensemble": 0.5, "low-rank": 0.5}  # of the others' epochs at scale cpu: a step takes several times theirs


def outside_of(context: Context, task: str) -> data.Dataset:
    """Images of no class that a task trains on.

    For MNIST notMNIST's letters, at the scale `smoke` digits upside down; for five classes of CIFAR-10 the test images
    of the other five, at `smoke` digits from 5 on.

    Args:
        context: Of the run.
        task: One of `TASKS`.
    """
    if context.scale != "smoke":
        if task == "mnist":
            return data.load("notmnist")
        hidden = held_out_classes(data.load("cifar10"), range(TASKS[task].classes, 10)).hidden
        assert hidden.test is not None
        return hidden.test
    digits = enlarged_digits()[1]
    if task == "mnist":
        return data.as_dataset((digits.x.flip(-2), digits.y))
    digits = digits.subset(digits.y >= TASKS[task].classes)
    return data.as_dataset((digits.x.repeat(1, TASKS[task].network[0], 1, 1), digits.y))


def lenets(context: Context, task: str) -> Result:
    """Figures 2 and 3: the paper's methods, on its LeNets.

    Args:
        context: Of the run.
        task: `"mnist"` or `"cifar5"`.
    """
    train, test = images(context, task)
    step = context.pick(1, 20 if task == "mnist" else 10, 1)
    test, outside = test[::step], outside_of(context, task)[::step]
    found = {}
    for method in PAPER:
        size = size_of(context, task, METHODS[method].ensemble)
        fit = partial(posterior_of, context, task, method, train, size)
        found[method] = measured(context, f"{task}-{method}", method, fit, test, outside, size.draws)
    what = {"mnist": ("MNIST (test)", "notMNIST"), "cifar5": ("five classes (test)", "five hidden classes")}[task]
    notes = [
        "The LeNets of mnf/table-2, with what was cut there. The paper's figure has no numbers; its text says that MNF "
        "has the fewest sure predictions, weight decay is the most overconfident, and dropout lies between.",
        f"Of every {step} images one: {len(test)} of the test set, {len(outside)} of the others.",
    ]
    return _result(f"LeNet, {TASKS[task].title}", found, what, TASKS[task].errors, notes, f"entropy-{task}")


def every_guide(context: Context) -> Result:
    """MNIST against notMNIST by every guide of the library, on an MLP.

    Args:
        context: Of the run.
    """
    train, test = images(context, "mnist")
    outside = outside_of(context, "mnist")
    train = train[: context.pick(len(train), 20_000, len(train))]
    draws = context.pick(2, 50, 100)
    found = {}
    for method in METHODS:
        fit = partial(_mlp, context, method, train)
        found[method] = measured(context, f"mlp-{method}", method, fit, test, outside, draws)
    notes = [
        f"MLP 784-100-100-10, {len(train)} training images, {len(test)} test images and {len(outside)} letters, "
        f"{draws} draws; the ensemble is trained with adversarial examples of ε = 0.25, as in the paper. The "
        "paper has LeNets: its errors stand beside ours to show what the small network costs.",
    ]
    what = ("MNIST (test)", "notMNIST")
    return _result("MLP, MNIST", found, what, TASKS["mnist"].errors, notes, "notmnist")


def _mlp(context: Context, method: str, train: data.Dataset) -> Posterior:
    how = METHODS[method]
    epochs = context.pick(1, 8, 50)
    epochs = max(1, round(epochs * context.pick(1.0, _EFFORT.get(method, 1.0), 1.0)))
    torch.manual_seed(context.seed)
    network = models.MLP(784, 10, context.pick((8,), (100, 100), (100, 100)), batch_norm=how.batch_norm)
    bnn = BayesianNetwork(network, likelihoods.Categorical(), how.prior or Normal(0.0, 1.0))
    guide = how.guide(bnn, TASKS["mnist"].max_scale)
    return trained(
        context.folder / f"mlp-mnist-{method}.bnn",
        bnn,
        guide,
        train,
        say=context.say,
        objective=guide.objective(objectives.KLAnnealing(0.5 * epochs)),
        epochs=epochs,
        batch_size=100,
        lr=2e-3,
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        chains=context.pick(2, 5, 10) if how.ensemble else 1,
        adversarial=TASKS["mnist"].adversarial if how.ensemble else None,
        seed=context.seed,
    )


def measured(
    context: Context,
    name: str,
    method: str,
    fit: Callable[[], Posterior],
    test: data.Dataset,
    outside: data.Dataset,
    draws: int,
) -> dict[str, Any]:
    """Test error, entropies in nats of every image, and scores out of distribution; kept in a file.

    Args:
        context: Of the run.
        name: Of the file.
        method: One of `METHODS`; points take one draw a chain, moments none.
        fit: Gives the posterior.
        test: Of what was trained on.
        outside: Of none of its classes.
        draws: Of the posterior.
    """
    many = {"map": 1, "ensemble": 1, "moments": None}.get(method, draws)

    def measure() -> dict[str, Any]:
        posterior = fit()
        inside, out = (posterior.predict(part.x, many, context.seed).pooled for part in (test, outside))
        scores = ood_scores(inside, out, seed=context.seed).isel(chain=0)
        return {
            "error": (inside.classes != test.y).double().mean().item(),
            "inside": uncertainties(inside)["entropy"].round(6).tolist(),
            "outside": uncertainties(out)["entropy"].round(6).tolist(),
            "scores": {f"{v}": {m: scores[v].sel(measure=m).item() for m in MEASURES} for v in scores.data_vars},
            "fit_seconds": posterior.info.get("seconds"),
        }

    setting = {"draws": many, "test": len(test), "outside": len(outside), "seed": context.seed}
    return recorded(context.folder / f"{name}.json", setting, measure, say=context.say)


def _result(
    title: str,
    found: Mapping[str, Mapping[str, Any]],
    what: Sequence[str],
    errors: Mapping[str, float],
    notes: list[str],
    figure: str,
) -> Result:
    header = ["", "test error, %", "paper, %", f"median entropy, nats: {what[0]}", what[1], "sure of it, %"]
    header += ["AUROC: entropy", "mutual information", "max probability", "AUPR out", "AUPR in", "FPR95, %"]
    rows = []
    for method, each in found.items():
        scores, error = each["scores"], each["error"]
        spread = (error * (1 - error) / each["setting"]["test"]) ** 0.5
        row = [METHODS[method].label, f"{100 * error:.2f} ± {100 * spread:.2f}"]
        row += [f"{errors[method]:g}" if method in errors else "-"]
        row += [f"{np.median(each[kind]):.3f}" for kind in ("inside", "outside")]
        row += [f"{100 * sure(each['outside']):.0f}"]
        for measure in MEASURES:
            many = (scores["auroc"][measure], scores["auroc_se"][measure])
            # One draw, or moments of points: nothing differs, so there is no epistemic part to score.
            row.append("-" if measure == "mutual_information" and not many[1] else "{:.3f} ± {:.3f}".format(*many))
        row += [f"{scores[score]['entropy']:.3f}" for score in ("aupr_out", "aupr_in")]
        row += [f"{100 * scores['fpr_95']['entropy']:.0f} ± {100 * scores['fpr_95_se']['entropy']:.0f}"]
        rows.append(row)
    caption = (
        f"{title}: uncertainty of {what[1]}. Sure of it: entropy below 0.1 nats. AUPR and FPR95 by entropy; FPR95: the "
        "share of outside images that pass where 95% of the test images do"
    )
    curves = {
        METHODS[method].label: {what[0]: each["inside"], what[1]: each["outside"]} for method, each in found.items()
    }
    classes = TASKS["cifar5" if figure.endswith("cifar5") else "mnist"].classes
    values = {
        method: {k: v for k, v in each.items() if k not in ("inside", "outside")} for method, each in found.items()
    }
    notes.append("± is one standard error over images; one fit a method.")
    drawn = plot_entropy_cdf(curves, num_classes=classes)
    return Result([Table(caption, header, rows)], {figure: drawn}, notes, values)


def sure(entropies: Sequence[float]) -> float:
    """The share of predictions of an entropy below 0.1 nats: a probability of about 0.98.

    Args:
        entropies: In nats.
    """
    return float(np.mean(np.asarray(entropies) < 0.1))


_SOURCE = "Louizos & Welling 2017 (MNF)"

ENTRIES = (
    Entry(
        "mnf/figure-2",
        "Entropy of LeNets' predictions for notMNIST, by method",
        f"{_SOURCE}, Figure 2",
        lambda context: lenets(context, "mnist"),
        data=("mnist", "notmnist"),
        minutes=35,
    ),
    Entry(
        "mnf/figure-3",
        "Entropy of LeNets' predictions for five hidden classes of CIFAR-10, by method",
        f"{_SOURCE}, Figure 3",
        lambda context: lenets(context, "cifar5"),
        data=("cifar10",),
        minutes=60,
    ),
    Entry(
        "mnf/notmnist-guides",
        "Entropy of an MLP's predictions for notMNIST, by every guide",
        f"{_SOURCE}, Figure 2, for more methods",
        every_guide,
        data=("mnist", "notmnist"),
        minutes=5,
    ),
)
