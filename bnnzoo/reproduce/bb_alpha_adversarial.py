"""BB-α paper (Li and Gal, 2017), Figures 6 and 7: adversarial examples for dropout networks and for a plain one.

Section 5.3: MLPs with three hidden layers of 1000 ReLU on MNIST, images in [0, 1]; rate 0.5 for several α, 10 draws at
test, beside the same network without dropout, trained by maximum likelihood. Attacked by the fast gradient sign away
from the predicted class, and towards class 0 in 40 steps of 0.01. The figures have no printed numbers; the text makes
claims, which are put into numbers here. What it does not tell: K in training (here 10, as in section 5.2), weight decay
(1e-6, as there), the number of epochs, whether pixels are dropped (here not) and whether attacked images are clipped to
[0, 1] (its formulas do not, so they are not here; the table has the point of 50% with clipping too).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from bnnzoo import data, guides, likelihoods, models, objectives, priors
from bnnzoo.evaluation import (
    Attack,
    FastGradientSign,
    IteratedGradientSign,
    attack_curve,
    breaking_point,
    chain_mean,
    plot_adversarial_examples,
    plot_attack,
)
from bnnzoo.network import BayesianNetwork
from bnnzoo.posterior import Posterior
from bnnzoo.reproduce.entry import Context, Entry, Result, Table, mean_and_error
from bnnzoo.reproduce.fits import enlarged_digits, recorded, trained

NETWORKS: dict[str, float | None] = {"MLP": None, "α = 0": 0.0, "α = 0.5": 0.5, "α = 1": 1.0}
"""The networks by title: None is the plain one, trained by maximum likelihood."""

WEIGHT_DECAY = 1e-6
"""A datum, of the dropout networks: as in section 5.2 of the paper."""

SHOWN = (0.1, 0.2, 0.3, 0.5)
"""Steps of the untargeted attack whose scores are in the table."""

TARGET = 0


@dataclass(frozen=True)
class Setting:
    """What is trained and attacked.

    Attributes:
        rows: Training images, the first ones; None takes all.
        hidden: Units of each hidden layer.
        epochs: Passes over the training images.
        particles: K in training.
        chains: Repeats: chains of one fit.
        draws: Of a gradient, and of a prediction.
        images: The first test images, for the untargeted attack; None takes all.
        targeted: Of those, the first ones that are no zeros, for the targeted attack; None takes all.
        steps: Of the targeted attack.
        every: The targeted attack is scored every so many steps.
    """

    rows: int | None
    hidden: tuple[int, ...]
    epochs: int
    particles: int
    chains: int
    draws: int
    images: int | None
    targeted: int | None
    steps: int = 40
    every: int = 5


def setting(context: Context) -> Setting:
    """What a scale asks for.

    Args:
        context: Of the run.
    """
    return context.pick(
        Setting(240, (16, 16, 16), 2, 2, 2, 2, 40, 20, steps=4, every=2),
        Setting(20_000, (400, 400, 400), 10, 10, 3, 10, 500, 150),
        Setting(None, (1000, 1000, 1000), 100, 10, 3, 10, None, None, every=1),
    )


def fitted(context: Context, title: str, train: data.Dataset, chosen: Setting) -> Posterior:
    """One network, of all repeats: what an earlier call left, or a fit, which goes on where it was interrupted.

    Args:
        context: Of the run.
        title: One of `NETWORKS`.
        train: Training images.
        chosen: What to train.
    """
    alpha = NETWORKS[title]
    # Without dropout: maximum likelihood, but for a prior that is next to flat.
    scale = 1e3 if alpha is None else math.sqrt(1.0 / (2.0 * len(train) * WEIGHT_DECAY))
    torch.manual_seed(context.seed)
    network = models.MLP(math.prod(train.x.shape[1:]), 10, hidden=chosen.hidden)
    bnn = BayesianNetwork(network, likelihoods.Categorical(), priors.Normal(0.0, scale))
    return trained(
        context.fits / f"attacked-{'mlp' if alpha is None else f'alpha-{alpha:g}'}.bnn",
        bnn,
        guides.Map(bnn) if alpha is None else guides.Dropout(bnn, 0.5),
        train,
        say=context.say,
        objective=None if alpha is None else objectives.BBAlpha(alpha, chosen.particles),
        epochs=chosen.epochs,
        batch_size=128,
        lr=1e-3,
        chains=chosen.chains,
        seed=context.seed,
    )


def curve_of(context: Context, name: str, posterior: Posterior, test: data.Dataset, attack: Attack, draws: int) -> Any:
    """The curve of an attack on a posterior, kept.

    Args:
        context: Of the run.
        name: Of the file: network and attack.
        posterior: What is attacked.
        test: Images and labels.
        attack: The attack.
        draws: Of a gradient, and of a prediction.
    """
    about = {key: str(value) for key, value in vars(attack).items()}

    def make() -> dict[str, Any]:
        curve = attack_curve(posterior, test.x, test.y, attack, num_samples=draws, seed=context.seed)
        return {"curve": curve.to_dict()}

    asked = {"attack": type(attack).__name__, **about, "images": len(test), "draws": draws, "seed": context.seed}
    return xr.Dataset.from_dict(recorded(context.folder / f"{name}.json", asked, make, context.say)["curve"])


def adversarial(context: Context) -> Result:
    """Figures 6 and 7: accuracy and entropy against the size of an untargeted attack, and the steps of a targeted one.

    Args:
        context: Of the run.
    """
    chosen = setting(context)
    train, test = enlarged_digits() if context.scale == "smoke" else data.load("mnist").split()
    train, test = train[: chosen.rows], test[: chosen.images]
    others = test.subset(test.y != TARGET)[: chosen.targeted]
    attacks = {
        "untargeted": (FastGradientSign(), test),
        "clipped": (FastGradientSign(bounds=(0.0, 1.0)), test),
        "targeted": (IteratedGradientSign(chosen.steps, 0.01, chosen.every, target=TARGET), others),
    }
    posteriors: dict[str, Posterior] = {}
    curves: dict[str, dict[str, xr.Dataset]] = {attack: {} for attack in attacks}
    for title, alpha in NETWORKS.items():
        posterior = posteriors[title] = fitted(context, title, train, chosen)
        for kind, (attack, images) in attacks.items():
            name = f"{'mlp' if alpha is None else f'alpha-{alpha:g}'}-{kind}"
            curves[kind][title] = curve_of(context, name, posterior, images, attack, chosen.draws)
    figures = {
        "adversarial": plot_attack(curves["untargeted"]),
        "adversarial-targeted": plot_attack(curves["targeted"]),
        "adversarial-examples": plot_adversarial_examples(
            {title: posterior.chain(0) for title, posterior in posteriors.items()},
            test.x[0],
            FastGradientSign((0.0, 0.1, 0.2, 0.3, 0.4, 0.5)),
            num_samples=chosen.draws,
            seed=context.seed,
        ),
    }
    tables = [
        untargeted_table(curves["untargeted"], curves["clipped"], len(test)),
        targeted_table(curves["targeted"], len(others)),
        claims(curves["untargeted"], curves["targeted"]),
    ]
    return Result(tables, figures, _notes(context, chosen), values={"setting": asdict(chosen), **_plain(curves)})


def untargeted_table(curves: Mapping[str, xr.Dataset], clipped: Mapping[str, xr.Dataset], images: int) -> Table:
    """Accuracy and entropy at some steps, and the step at which half of the images are misclassified.

    Args:
        curves: Of the untargeted attack, by network.
        clipped: The same with images clipped to [0, 1].
        images: How many.
    """
    header = ["", "η at 50% accuracy", "clipped", "accuracy at η = 0", *(f"{eta:g}" for eta in SHOWN)]
    header += ["entropy (nats) at η = 0", *(f"{eta:g}" for eta in SHOWN)]
    rows = []
    for title, curve in curves.items():
        mean = chain_mean(curve)
        rows.append(
            [
                title,
                over_chains(breaking_point(curve), ".3f"),
                over_chains(breaking_point(clipped[title]), ".3f"),
                *(at(mean, "accuracy", eta) for eta in (0.0, *SHOWN)),
                *(at(mean, "entropy", eta) for eta in (0.0, *SHOWN)),
            ]
        )
    chains = next(iter(curves.values())).sizes["chain"]
    caption = f"Figure 6: untargeted attack on {images} test images, {chains} networks each; ± one standard error"
    return Table(caption, header, rows)


def targeted_table(curves: Mapping[str, xr.Dataset], images: int) -> Table:
    """What share of the images is predicted as the target after all steps, and how certainly.

    Args:
        curves: Of the targeted attack, by network.
        images: How many.
    """
    rows = []
    for title, curve in curves.items():
        mean, last = chain_mean(curve), float(curve.step[-1])
        rows.append(
            [
                title,
                over_chains(breaking_point(curve, of="target_accuracy"), ".1f"),
                over_chains(breaking_point(curve), ".1f"),
                *(at(mean, name, last) for name in ("target_accuracy", "accuracy", "entropy", "confidence")),
                f"{float(mean.entropy.max()):.2f} (step {int(mean.entropy.idxmax('step'))})",
            ]
        )
    step = int(next(iter(curves.values())).step[-1])
    header = ["", "step: half are 0", "step: half are right", f"after {step}: share 0", "share right"]
    header += ["entropy, nats", "probability of the prediction", "greatest entropy"]
    caption = f"Figure 7: targeted attack (class {TARGET}) on {images} images of other digits; ± one standard error"
    return Table(caption, header, rows)


def claims(untargeted: Mapping[str, xr.Dataset], targeted: Mapping[str, xr.Dataset]) -> Table:
    """What the paper says of its figures, beside our numbers.

    Args:
        untargeted: Curves by network.
        targeted: The same of the targeted attack.
    """
    means = {title: chain_mean(curve) for title, curve in untargeted.items()}
    hits = {title: chain_mean(curve) for title, curve in targeted.items()}
    accuracy = {title: number(mean, "accuracy", 0.1) for title, mean in means.items()}
    dropout = [title for title in means if title != "MLP"]

    def ratio(above: Number, below: Number) -> str:
        return f"{above[0] / below[0]:.2f} times" if below[0] > 0 else "∞ times"

    def each(values: Mapping[str, Number], form: str = ".2f") -> str:
        return ", ".join(f"{title}: {value:{form}}" for title, (value, _) in values.items())

    def more(values: Mapping[str, Number], sign: int = 1) -> str:
        return verdict([difference(values[title], values["MLP"], sign) for title in dropout])

    half = {title: mean_and_error(breaking_point(curve).values.tolist()) for title, curve in untargeted.items()}
    wrong = {title: number(mean, "entropy", 0.2) for title, mean in means.items()}
    rise = {
        title: difference(number(means[title], "entropy", 0.5), number(means[title], "entropy", 0.2))
        for title in dropout
    }
    last = {title: float(curve.step[-1]) for title, curve in targeted.items()}
    entropy = {title: number(mean, "entropy", last[title]) for title, mean in hits.items()}
    hit = {title: number(mean, "target_accuracy", last[title]) for title, mean in hits.items()}
    best, mlp, zero = accuracy["α = 1"], accuracy["MLP"], accuracy["α = 0"]
    others = [difference(half["α = 1"], value) for title, value in half.items() if title != "α = 1"]
    rows = [
        ["dropout networks lose accuracy later: η at 50%", each(half, ".3f"), more(half)],
        ["α = 1 is the most robust of them: η at 50%", each(half, ".3f"), verdict(others)],
        [
            "at η = 0.1 the accuracy of α = 1 is about 3 times the MLP's (here: 2.5 to 3.5)",
            ratio(best, mlp),
            about(best, mlp, 2.5, 3.5),
        ],
        ["and about 20% above that of α = 0 (here: 10 to 30%)", ratio(best, zero), about(best, zero, 1.1, 1.3)],
        ["at η = 0.2 the MLP is confident, dropout uncertain: entropy", each(wrong), more(wrong)],
        [
            "dropout's entropy keeps increasing: its change from η = 0.2 to 0.5",
            each(rise, "+.2f"),
            verdict(list(rise.values())),
        ],
        ["targeted: dropout is more robust: share predicted as 0 at the end", each(hit), more(hit, -1)],
        ["targeted: dropout is still uncertain at the end: entropy", each(entropy), more(entropy)],
    ]
    return Table("What section 5.3 says, and what was found here", ["paper", "here", "holds"], rows)


Number = tuple[float, float]
"""A value and its standard error."""


def number(mean: xr.Dataset, name: str, size: float) -> Number:
    """A score at a size of the attack, and its standard error.

    Args:
        mean: Of `chain_mean`.
        name: The score.
        size: Of the attack.
    """
    (dim,) = mean[name].dims
    value, error = (float(mean[each].sel({dim: size})) for each in (name, f"{name}_se"))
    return value, error


def difference(one: Number, other: Number, factor: float = 1.0) -> Number:
    """`factor * (one - other)`; the errors count as independent, which is too much where the images are the same.

    Args:
        one: Its value and standard error.
        other: Likewise.
        factor: -1 turns the difference around.
    """
    return factor * (one[0] - other[0]), abs(factor) * math.hypot(one[1], other[1])


def verdict(margins: Sequence[Number]) -> str:
    """Whether all differences are positive.

    Args:
        margins: The differences.

    Returns:
        "yes" if all are by more than two standard errors, "no" if one is negative by as much, else "within error"; "-"
        if one has no value or no error.
    """
    if not np.isfinite(margins).all():
        return "-"
    if any(value < -2.0 * error for value, error in margins):
        return "no"
    return "yes" if all(value > 2.0 * error for value, error in margins) else "within error"


def about(above: Number, below: Number, least: float, most: float) -> str:
    """Whether a number is about so many times another, and above it.

    Args:
        above: The number.
        below: The other, ≥ 0.
        least: Of the ratio, ≥ 1.
        most: Of the ratio.

    Returns:
        "no" if the ratio is outside by more than two standard errors, "yes" if it is inside and the first number above
        the other by more than two, else "within error"; "-" as of `verdict`.
    """
    bounds = [(least * below[0], least * below[1]), (most * below[0], most * below[1])]
    margins = [difference(above, bounds[0]), difference(bounds[1], above)]
    inside = all(value >= 0.0 for value, _ in margins)
    return verdict([difference(above, below)] if inside else margins)


def at(mean: xr.Dataset, name: str, size: float) -> str:
    """A score at a size of the attack, with its standard error.

    Args:
        mean: Of `chain_mean`.
        name: The score.
        size: Of the attack.
    """
    value, error = number(mean, name, size)
    return f"{value:.2f} ± {error:.2f}"


def over_chains(values: xr.DataArray, form: str) -> str:
    """Mean of a number a chain, with its standard error where there are several; "-" if any has none.

    Args:
        values: By chain.
        form: The numbers' format.
    """
    numbers: Sequence[float] = values.values.tolist()
    if not np.isfinite(numbers).all():
        return "-"
    mean, error = mean_and_error(numbers)
    return f"{mean:{form}}" + (f" ± {error:{form}}" if len(numbers) > 1 else "")


def _plain(curves: Mapping[str, Mapping[str, xr.Dataset]]) -> dict[str, Any]:
    names = ("accuracy", "entropy", "mutual_information", "confidence", "pll", "target_accuracy")
    return {
        kind: {
            title: {name: curve[name].values.tolist() for name in names if name in curve}
            for title, curve in by_title.items()
        }
        for kind, by_title in curves.items()
    }


def _notes(context: Context, chosen: Setting) -> list[str]:
    notes = [
        "Each network is attacked through the average over its own draws, and scored with other draws; the targeted "
        "attack draws anew at every step.",
        "Standard errors: over images and networks together (`chain_mean`); of steps over networks alone.",
        "A claim holds, or does not, by more than two standard errors, or it is within error.",
        'The text calls the network that beats "the VI-trained version" at η = 0.1 "the BNN trained with α = 0.0"; '
        "α = 0 is the VI-trained version, so α = 1 must be meant.",
    ]
    if context.scale == "cpu":
        notes.append(
            f"Cut: hidden layers of {chosen.hidden[0]} units for 1000, {chosen.rows} training images for 60,000, "
            f"{chosen.epochs} epochs, {chosen.images} test images for 10,000 ({chosen.targeted} for the targeted one)."
        )
    return notes


ENTRIES = (
    Entry(
        "bb-alpha/figures-6-7",
        "Adversarial examples for dropout networks by α, and for a plain one: accuracy and entropy",
        "Li & Gal 2017 (BB-α), Figures 6 and 7",
        adversarial,
        data=("mnist",),
        minutes=15,
    ),
)
