"""MNF paper (Louizos and Welling, 2017), Figures 4 and 5: accuracy and entropy under the fast gradient sign.

Section 4.2: the LeNets of Table 2, but for the deep ensemble, which is trained on adversarial examples. The figures
have no printed numbers; the text makes claims, which are put into numbers here. It does not tell which label the attack
moves away from (here the predicted one, as in Cleverhans, which it uses), nor whether images are clipped (here not).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import xarray as xr

from bnnzoo.evaluation import FastGradientSign, breaking_point, chain_mean, plot_attack
from bnnzoo.reproduce.bb_alpha_adversarial import Number, at, curve_of, difference, number, over_chains, verdict
from bnnzoo.reproduce.entry import Context, Entry, Result, Table
from bnnzoo.reproduce.mnf_lenet import METHODS, PAPER, TASKS, images, posterior_of, size_of

SHOWN = (0.1, 0.2, 0.3, 0.5)
"""Steps of the attack whose scores are in the table."""

ATTACKED = tuple(method for method in PAPER if not METHODS[method].ensemble)


def adversarial(context: Context, task: str) -> Result:
    """Figures 4 and 5: accuracy and entropy against the size of the attack.

    Args:
        context: Of the run.
        task: `"mnist"` or `"cifar5"`.
    """
    train, test = images(context, task)
    test = test[: context.pick(30, 250, len(test))]
    draws = context.pick(2, 10, 100)
    attack = FastGradientSign()
    curves = {}
    for method in ATTACKED:
        posterior = posterior_of(context, task, method, train, size_of(context, task))
        curves[METHODS[method].label] = curve_of(context, f"{task}-{method}", posterior, test, attack, draws)
    notes = [
        f"Attacked and scored by {draws} draws each, not the same ones; the paper takes 100 at test. ± is the standard "
        f"error of the {len(test)} images; one fit a method.",
        f"Uniform predictions have an entropy of {math.log(TASKS[task].classes):.2f}.",
    ]
    values = {
        label: {name: curve[name].values[0].tolist() for name in ("accuracy", "entropy", "confidence")}
        for label, curve in curves.items()
    }
    tables = [_table(curves, TASKS[task].title, len(test))]
    if task == "mnist":
        tables.append(claims(curves))
    return Result(tables, {f"adversarial-{task}": plot_attack(curves)}, notes, values)


def _table(curves: Mapping[str, xr.Dataset], title: str, count: int) -> Table:
    header = ["", "ε at 50% accuracy", "accuracy at ε = 0", *(f"{epsilon:g}" for epsilon in SHOWN)]
    header += ["entropy (nats) at ε = 0", *(f"{epsilon:g}" for epsilon in SHOWN)]
    header += ["probability of the prediction at ε = 0.1", "0.3"]
    rows = []
    for label, curve in curves.items():
        mean = chain_mean(curve)
        row = [label, over_chains(breaking_point(curve), ".3f")]
        row += [at(mean, name, epsilon) for name in ("accuracy", "entropy") for epsilon in (0.0, *SHOWN)]
        rows.append([*row, *(at(mean, "confidence", epsilon) for epsilon in (0.1, 0.3))])
    return Table(f"{title}: fast gradient sign on {count} test images; ± one standard error", header, rows)


def claims(curves: Mapping[str, xr.Dataset]) -> Table:
    """What the paper says of MNIST, beside our numbers.

    Args:
        curves: By label, those of dropout and MNF among them.
    """
    dropout, mnf = (chain_mean(curves[METHODS[name].label]) for name in ("dropout", "mnf"))
    means = {label: chain_mean(curve) for label, curve in curves.items()}

    def over(mean: xr.Dataset, name: str) -> Number:
        # The images are the same for every ε: averaging over it does not make the error smaller.
        value, error = (float(mean[each].sel(epsilon=slice(0.05, None)).mean()) for each in (name, f"{name}_se"))
        return value, error

    accuracy = {label: over(mean, "accuracy") for label, mean in means.items()}
    best = max(accuracy, key=lambda label: accuracy[label][0])
    ours = METHODS["dropout"].label
    holds = verdict([difference(accuracy[ours], value) for label, value in accuracy.items() if label != ours])
    entropy, sure = over(mnf, "entropy"), over(dropout, "confidence")
    unsure, dropped = over(dropout, "entropy"), number(mnf, "accuracy", 0.1)
    rows = [
        [
            "Dropout has the better accuracies: mean over ε from 0.05 to 0.5",
            ", ".join(f"{label}: {value:.2f}" for label, (value, _) in accuracy.items()),
            f"no: {best}" if holds == "no" else holds,
        ],
        [
            "Dropout is overconfident: mean probability of its prediction above 0.7",
            f"{sure[0]:.2f}",
            verdict([difference(sure, (0.7, 0.0))]),
        ],
        [
            "MNF's accuracy drops almost immediately close to random (0.1): at ε = 0.1",
            at(mnf, "accuracy", 0.1),
            verdict([difference((0.2, 0.0), dropped)]),
        ],
        [
            "while its entropy rises almost to the greatest: mean share of log 10",
            f"{entropy[0] / math.log(10):.2f}",
            verdict([difference(entropy, (0.8 * math.log(10), 0.0))]),
        ],
        [
            "MNF is less sure of itself than Dropout: mean entropy, nats",
            f"MNF: {entropy[0]:.2f}, Dropout: {unsure[0]:.2f}",
            verdict([difference(entropy, unsure)]),
        ],
    ]
    return Table("What section 4.2 says of MNIST, and what was found here", ["paper", "here", "holds"], rows)


ENTRIES = (
    Entry(
        "mnf/figure-4",
        "LeNet on MNIST under the fast gradient sign: accuracy and entropy by method",
        "Louizos & Welling 2017 (MNF), Figure 4",
        partial(adversarial, task="mnist"),
        data=("mnist",),
        minutes=30,
    ),
    Entry(
        "mnf/figure-5",
        "LeNet on five classes of CIFAR-10 under the fast gradient sign: accuracy and entropy by method",
        "Louizos & Welling 2017 (MNF), Figure 5",
        partial(adversarial, task="cifar5"),
        data=("cifar10",),
        minutes=40,
    ),
)
