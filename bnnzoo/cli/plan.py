"""`fit`'s options, checked and put together before any work."""

from __future__ import annotations

import inspect
import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from bnnzoo import data, guides, priors
from bnnzoo._vectorize import Pair, pyro_settings, seeded
from bnnzoo.chains import initial_state
from bnnzoo.cli import options as parsing
from bnnzoo.cli.options import bad, checking, known, known_data
from bnnzoo.data import Dataset, Split
from bnnzoo.models import catalogue
from bnnzoo.models.catalogue import NOISE
from bnnzoo.models.entry import Built, Entry, gaussian, mlp
from bnnzoo.objectives import ELBO, MomentELBO
from bnnzoo.posterior import Posterior
from bnnzoo.training_data import training_tensors
from bnnzoo.weights import SAMPLINGS

_NORMALIZED = "mcbn"  # the family whose networks need batch normalization

_OPTIMIZED = ("objective", "alpha", "particles", "kl_weight", "annealing", "epochs", "batch_size", "lr", "adversarial")
"""Options that sampling by NUTS has no use for."""

MINIMUM_EPOCHS = 10
"""Without `--epochs`, other data than an entry's own get as many steps as these, and so many epochs at least."""


@dataclass(frozen=True)
class FitOptions:
    """The options of `bnnzoo fit` as typed; None where not given."""

    data: str | None = None
    csv: Path | None = None
    target: str | None = None
    test_size: float | None = None
    entry: str | None = None
    guide: str | None = None
    sampling: str | None = None
    objective: str | None = None
    alpha: float | None = None
    particles: int | None = None
    kl_weight: float | None = None
    annealing: float | None = None
    prior: str | None = None
    likelihood: str | None = None
    noise: str | None = None
    hidden: str | None = None
    chains: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    adversarial: float | None = None
    warmup: int | None = None
    samples: int | None = None
    method: str | None = None
    seed: int = 0
    out: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Source:
    """Where a run's data came from, so that `score` and `export` find the same rows again.

    Attributes:
        data: A name that `bnnzoo.data.load` knows, or None.
        csv: A CSV file, or None.
        target: The CSV file's target column.
        task: The task asked for, or None to infer it.
        test_size: As for `Dataset.split`.
        seed: The split's seed.
    """

    data: str | None
    csv: str | None
    target: str | None
    task: str | None
    test_size: float | int | None
    seed: int

    def load(self) -> Dataset:
        """Reads the data."""
        if self.csv is not None:
            return data.from_csv(self.csv, str(self.target), task=self.task)
        return data.load(str(self.data))

    def split(self) -> Split:
        """Reads the data and splits them as the run did."""
        return self.load().split(test_size=self.test_size, seed=self.seed)


@dataclass(frozen=True)
class Plan:
    """A fit, ready to run.

    Attributes:
        entry: The recipe with the options worked in.
        guide: The guide's name.
        source: Where the data came from.
        split: The data.
        built: Model, guide, objective and training settings.
        samples: Draws a chain for predictions.
        method: How to predict: `"draws"` or `"moments"`.
        seed: The run's seed.
        out: The folder for the results; not made yet.
        given: The options given, for the record.
        note: What to tell the user about `out`, or "".
    """

    entry: Entry
    guide: str
    source: Source
    split: Split
    built: Built
    samples: int
    method: str
    seed: int
    out: Path
    given: Mapping[str, Any]
    note: str = ""


def resolve(options: FitOptions) -> Plan:
    """Checks every option and builds the model; nothing is written or trained.

    Args:
        options: What was typed.

    Returns:
        The plan.

    Raises:
        typer.BadParameter: An option that cannot be; says which, what was given and what is allowed.
    """
    _check_names(options)
    _check_folder(options)
    changes = _changes(options)
    source = _source(options)
    with checking("--csv" if options.csv else "--data"):
        dataset = source.load()
    if source.task not in (None, dataset.task):
        option = "--noise" if options.likelihood is None else "--likelihood"
        raise bad(option, f"is for {source.task}; {dataset.name} is {dataset.task}")
    with checking("--test-size"):
        split = dataset.split(test_size=source.test_size, seed=source.seed)
    guide, entry = _entry(options, dataset)
    entry = replace(entry, **changes)
    entry = replace(entry, **_guide_changes(options, entry, guide, split.train))
    entry = replace(entry, **_objective_changes(options, entry))
    entry = replace(entry, training=_training(options, entry, split.train))
    # Chain 0 starts at the network's own initial values: they belong to the seed too.
    with checking(None), seeded(options.seed, "cpu"):
        built = entry.build(split)
    _try_loss(options, built, split.train)
    method = _method(options, built, split.train)
    out, note = _folder(options, f"{dataset.name}-{guide}")
    given = {name: str(value) for name, value in vars(options).items() if value is not None}
    return Plan(entry, guide, source, split, built, _samples(options, entry), method, options.seed, out, given, note)


def _check_names(options: FitOptions) -> None:
    if options.csv is not None and options.data is not None:
        raise bad("--csv", f"--data {options.data} is given too: choose one of them")
    if options.csv is not None and options.target is None:
        raise bad("--target", "a CSV file needs the name of its target column")
    if options.csv is None and options.target is not None:
        raise bad("--target", "names a column of --csv, and there is no --csv")
    if options.entry is not None:
        known("--entry", options.entry, catalogue)
    if options.guide is not None:
        known("--guide", _family(options.guide), {**parsing.GUIDES, parsing.NUTS: None})
    if options.objective is not None:
        known("--objective", _family(options.objective), parsing.OBJECTIVES)
    sampler = ""
    if options.guide == parsing.NUTS:
        sampler = "--guide nuts, which does not optimize"
    elif options.guide is None and options.entry is not None and catalogue[options.entry].guide is None:
        sampler = f"entry {options.entry}, sampled by NUTS"
    useless = [name for name in ("sampling", *_OPTIMIZED) if sampler and getattr(options, name) is not None]
    if useless:
        raise bad(f"--{useless[0].replace('_', '-')}", f"means nothing with {sampler}")


def _changes(options: FitOptions) -> dict[str, Any]:
    """The fields of the entry that options replace whatever the data."""
    changes: dict[str, Any] = {}
    if options.prior is not None:
        changes["prior"] = parsing.parse_prior(options.prior)
    if options.hidden is not None:
        normalized = (options.guide or options.entry or "").startswith(_NORMALIZED)
        changes["network"] = mlp(*parsing.parse_hidden(options.hidden), batch_norm=normalized)
    if options.likelihood is not None:
        changes["likelihood"] = parsing.parse("--likelihood", options.likelihood, parsing.LIKELIHOODS)()
    if options.noise is not None:
        if options.likelihood not in (None, "gaussian"):
            raise bad("--noise", f"belongs to --likelihood gaussian; given: {options.likelihood}")
        changes["likelihood"] = gaussian(parsing.parse_noise(options.noise))
    return changes


def _source(options: FitOptions) -> Source:
    if options.lr is not None:
        parsing.positive("--lr", options.lr)
    if options.adversarial is not None and not 0 < options.adversarial <= 1:
        raise bad("--adversarial", f"must be a fraction above 0 and at most 1; given: {options.adversarial:g}")
    if options.kl_weight is not None and not 0 <= options.kl_weight < math.inf:
        raise bad("--kl-weight", f"must be a finite number of at least 0; given: {options.kl_weight:g}")
    if options.annealing is not None and not 0 <= options.annealing <= 1:
        raise bad("--annealing", f"must be a share of the training, from 0 to 1; given: {options.annealing:g}")
    test_size = None if options.test_size is None else parsing.parse_test_size(options.test_size)
    name = options.data
    if name is None and options.csv is None:
        name = catalogue[options.entry or "mean-field/diabetes"].data
    if name is not None:
        name = known_data(name)
    kind = None if options.likelihood is None else options.likelihood.partition(":")[0]
    task = None if kind is None else parsing.LIKELIHOODS[kind].task
    if options.noise is not None:
        task = "regression"
    csv = None if options.csv is None else str(options.csv.resolve())
    return Source(name, csv, options.target, task, test_size, options.seed)


def _entry(options: FitOptions, dataset: Dataset) -> tuple[str, Entry]:
    """The guide's name, and the entry to start from: the one asked for, or the closest to the data and the guide."""
    if options.entry is not None:
        entry = catalogue[options.entry]
        return _family(options.guide or entry.name.partition("/")[0]), entry
    guide = _family(options.guide or "mean-field")
    kinds = [_kind(dataset)] if options.csv else [dataset.name, _kind(dataset)]
    # The recipes of a variant (`mnf-iaf`) are those of its family (`mnf`).
    families = [guide, guide.partition("-")[0]]
    if families[1] != _NORMALIZED:
        families.append("mean-field")
    names = [f"{family}/{kind}" for kind in kinds for family in families]
    entry = catalogue[next(name for name in names if name in catalogue)]
    if dataset.task == "counts" and options.likelihood is None:
        # Under a standard normal prior on every weight the log rate has a standard deviation of tens.
        entry = replace(entry, likelihood=parsing.LIKELIHOODS["poisson"].make(), prior=priors.FanIn)
    return guide, entry


def _family(choice: str) -> str:
    """The name of a guide or an objective, without the numbers behind its colon."""
    return choice.partition(":")[0].strip()


def _kind(dataset: Dataset) -> str:
    shape = dataset.input_shape
    if len(shape) == 3 and shape[1] == shape[2] >= 16:
        return "lenet-mnist"
    return "digits" if dataset.task == "classification" else "uci-mlp"


def _guide_changes(options: FitOptions, entry: Entry, guide: str, train: Dataset) -> dict[str, Any]:
    """The fields that a change of guide replaces: guide, training, and a noise that NUTS can sample."""
    changes: dict[str, Any] = {}
    make = entry.guide
    if options.guide is not None:
        if guide == parsing.NUTS:
            changes["guide"] = make = None
        else:
            chosen = parsing.parse("--guide", options.guide, parsing.GUIDES)
            changes["guide"] = make = parsing.inheriting(chosen, make, parsing.GUIDES)
        if (make is None) != (entry.guide is None):
            changes["training"] = catalogue["nuts/uci-mlp" if make is None else "mean-field/uci-mlp"].training
    if options.hidden is not None and isinstance(make, partial):
        # What the entry says of its own network's layers is nothing to an MLP.
        if isinstance(make.keywords.get("sampling"), dict):
            changes["guide"] = make = partial(make, sampling="local")
        if make.keywords.get("from_dropout_layers"):
            changes["guide"] = make = partial(make, from_dropout_layers=False)
    if options.sampling is not None:
        known("--sampling", options.sampling, dict.fromkeys(SAMPLINGS))
        kind = _kind_of(make)
        if kind not in (guides.MeanField, guides.MNF):
            given = f"{kind.__name__} of this entry" if options.guide is None and kind is not None else guide
            raise bad("--sampling", f"guide {given} draws no pre-activations: it belongs to mean-field and mnf")
        changes["guide"] = partial(cast(Any, make), sampling=options.sampling)
    if make is None and _learns_noise(entry, train):
        if options.noise is not None:
            raise bad("--noise", "NUTS samples the noise or holds it fixed: give prior or a number")
        changes["likelihood"] = gaussian(NOISE)
    return changes


def _objective_changes(options: FitOptions, entry: Entry) -> dict[str, Any]:
    """The fields that say what is minimized: numbers follow the objective's name, or have options of their own."""
    make: Any = entry.objective
    if make is ELBO and _kind_of(entry.guide) is guides.MomentPropagation:
        make = MomentELBO  # its own
    name, after_colon = getattr(make, "func", make).__name__, {}
    if options.objective is not None:
        chosen = parsing.parse("--objective", options.objective, parsing.OBJECTIVES)
        name, after_colon = _family(options.objective), chosen.keywords
        make = parsing.inheriting(chosen, make, parsing.OBJECTIVES)
    for option, number, value in (
        ("--alpha", "alpha", options.alpha),
        ("--particles", "num_particles", options.particles),
    ):
        if value is None:
            continue
        if number in after_colon:
            raise bad(option, f"--objective {options.objective} says it already: give one of the two")
        if number not in inspect.signature(make).parameters:
            takers = [taker for taker, choice in parsing.OBJECTIVES.items() if number in choice.numbers]
            raise bad(option, f"objective {name} takes no {option[2:]}; {', '.join(takers)} do")
        make = partial(make, **{number: value})
    with checking("--objective" if options.alpha is None else "--alpha"):
        make(kl_weight=1.0)
    changes = {"objective": make}
    if options.kl_weight is not None:
        changes["kl_weight"] = options.kl_weight
    if options.annealing is not None:
        changes["annealing"] = options.annealing
    return changes


def _try_loss(options: FitOptions, built: Built, train: Dataset) -> None:
    """Computes the loss of two rows: what an objective is not defined for, it says itself."""
    if built.guide is None:
        return
    x, y = training_tensors(built.bnn, train.subset(range(2)), train.standardization)
    pair = Pair(built.bnn, built.guide).copy()
    given = [name for name in ("objective", "guide", "prior") if getattr(options, name) is not None]
    with checking(f"--{given[0]}" if given else None), seeded(options.seed, "cpu"), pyro_settings(pair):
        built.objective.loss(pair.model, pair.guide, x, y, size=len(train))


def _kind_of(make: Any) -> Any:
    """The class of what an entry's `guide` builds."""
    return getattr(make, "func", make)


def _method(options: FitOptions, built: Built, train: Dataset) -> str:
    """How to predict, tried on two rows where it is by moments."""
    if options.method is not None:
        known("--method", options.method, dict.fromkeys(parsing.METHODS))
        if options.method == "moments" and options.samples is not None:
            raise bad("--samples", "means nothing with --method moments, which draws nothing")
    own: str = "draws" if options.samples else getattr(built.guide, "prediction", "draws")
    chosen = own if options.method is None else options.method
    if chosen == "moments":
        if built.guide is None:
            raise bad("--method", "a posterior that is sampled by NUTS predicts by draws")
        x, y = training_tensors(built.bnn, train.subset(range(2)), train.standardization)
        pair = Pair(built.bnn, built.guide).copy()
        with checking("--method"), seeded(options.seed, "cpu"), pyro_settings(pair):
            Posterior(pair, *initial_state(pair, 1, options.seed, x, y)).predict(x, method="moments")
    return chosen


def _learns_noise(entry: Entry, train: Dataset) -> bool:
    return any(p.requires_grad for p in entry.likelihood(train).parameters())


def _training(options: FitOptions, entry: Entry, train: Dataset) -> dict[str, Any]:
    training = dict(entry.training)
    if options.chains is not None:
        training["chains"] = options.chains
    if entry.guide is None:
        if options.warmup is not None:
            training["warmup_steps"] = options.warmup
        if options.samples is not None:
            training["num_samples"] = options.samples
        return training
    if options.warmup is not None:
        raise bad("--warmup", "belongs to --guide nuts")
    rows = len(train)
    if options.batch_size is not None and options.batch_size > rows:
        raise bad("--batch-size", f"must be at most {rows}, the number of training rows; given: {options.batch_size}")
    training["batch_size"] = options.batch_size or min(training["batch_size"], rows)
    if options.epochs is not None:
        training["epochs"] = options.epochs
    elif train.name != entry.data:
        own = data.info(entry.data)
        own_rows = own.rows if own.test_rows else round(0.9 * own.rows)
        steps = training["epochs"] * math.ceil(own_rows / entry.training["batch_size"])
        training["epochs"] = max(MINIMUM_EPOCHS, steps // math.ceil(rows / training["batch_size"]))
    if options.lr is not None:
        training["lr"] = options.lr
    if options.adversarial is not None:
        training["adversarial"] = options.adversarial
    return training


def _samples(options: FitOptions, entry: Entry) -> int:
    """Draws a chain for predictions: no more than NUTS keeps, few where a draw is a large network's pass."""
    if entry.guide is None:
        return min(options.samples or 200, entry.training.get("num_samples", 200))
    return options.samples or 200


def _check_folder(options: FitOptions) -> None:
    out = options.out or Path("runs")
    if out.exists() and not out.is_dir():
        raise bad("--out", f"{out} is a file: give a folder")
    if options.out is not None and not options.overwrite and out.is_dir() and any(out.iterdir()):
        raise bad("--out", f"{out} is not empty: give another folder, or --overwrite to replace what a fit writes")
    parent = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not os.access(parent, os.W_OK):
        raise bad("--out", f"no permission to write in {parent}")


def _folder(options: FitOptions, name: str) -> tuple[Path, str]:
    """The folder for the results, and what to say about it."""
    out = options.out or Path("runs") / name
    if not out.exists() or not any(out.iterdir()):
        return out, ""
    if options.overwrite:
        return out, f"{out} is not empty: the files that a fit writes are replaced."
    number = next(i for i in itertools.count(2) if not Path(f"{out}-{i}").exists())
    return Path(f"{out}-{number}"), f"{out} exists and is kept; this run goes to {out}-{number} (--overwrite replaces)."
