"""What the command line's names mean, and the checks of every option before any work.

Each table maps a name to a `Choice`; a new guide, prior, likelihood or objective is one line here. A value on
the command line is `name` or `name:number,number` (`normal:0.5`); numbers go to the choice's function in order, and
each is checked against what its `Number` says of it.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import typer
from pyro.distributions import Distribution

from bnnzoo import data, guides, objectives, priors
from bnnzoo.data.messages import closest
from bnnzoo.models import entry
from bnnzoo.models.catalogue import NOISE
from bnnzoo.prediction import Method


@dataclass(frozen=True)
class Number:
    """What a number after the colon may be.

    Attributes:
        whole: Whether only whole numbers will do.
        positive: Whether only finite numbers above 0 will do; if not, what is made of it knows its range, and says so.
    """

    whole: bool = False
    positive: bool = True


@dataclass(frozen=True)
class Choice:
    """A thing that an option can name.

    Attributes:
        make: Builds it, from the numbers after the colon and from what it is built of (a guide from the model).
        help: One line for `bnnzoo list`.
        task: The task of a likelihood; None for everything else.
        takes: Arguments of `make` that the numbers after the colon are, and what they may be; default: all of `make`'s
            that are numbers and have a default, positive ones.
    """

    make: Callable[..., Any]
    help: str
    task: str | None = None
    takes: Mapping[str, Number] | None = None

    @property
    def numbers(self) -> Mapping[str, Number]:
        """The arguments of `make` that the numbers after the colon are, in their order."""
        if self.takes is not None:
            return self.takes
        return {
            p.name: Number(whole=p.annotation in (int, "int"))
            for p in inspect.signature(self.make).parameters.values()
            if p.annotation in (float, int, "float", "int") and p.default is not p.empty
        }


def _normal(scale: float = 1.0) -> priors.Prior:
    return priors.Normal(0.0, scale)


def _laplace(scale: float = 1.0) -> priors.Prior:
    return priors.Laplace(0.0, scale)


def _student_t(df: float = 3.0, scale: float = 1.0) -> priors.Prior:
    return priors.StudentT(df, 0.0, scale)


def _cauchy(scale: float = 1.0) -> priors.Prior:
    return priors.Cauchy(0.0, scale)


def _scale_mixture(weight: float = 0.5, scale1: float = 1.0, scale2: float = 0.1) -> priors.Prior:
    return priors.ScaleMixture(weight, scale1, scale2)


PRIORS: dict[str, Choice] = {
    "normal": Choice(_normal, "Gaussian of mean 0; normal:SCALE, default 1"),
    "laplace": Choice(_laplace, "Laplace of mean 0; laplace:SCALE, default 1"),
    "student-t": Choice(_student_t, "Student's t around 0; student-t:DF,SCALE, default 3,1"),
    "cauchy": Choice(_cauchy, "Cauchy around 0; cauchy:SCALE, default 1"),
    "scale-mixture": Choice(_scale_mixture, "two Gaussians; scale-mixture:WEIGHT,SCALE1,SCALE2, default 0.5,1,0.1"),
    "log-uniform": Choice(priors.LogUniform, "improper: p(w) proportional to 1/|w|"),
    "fan-in": Choice(priors.FanIn, "Gaussian of scale SCALE/sqrt(fan-in), layer by layer; fan-in:SCALE, default 1"),
    "he": Choice(priors.He, "Gaussian of scale sqrt(2/fan-in), layer by layer"),
}

LIKELIHOODS: dict[str, Choice] = {
    "gaussian": Choice(entry.gaussian, "regression with one noise scale a target (see --noise)", "regression"),
    "heteroscedastic": Choice(entry.heteroscedastic, "regression, the noise predicted from the inputs", "regression"),
    "categorical": Choice(entry.categorical, "one class of several", "classification"),
    "bernoulli": Choice(entry.bernoulli, "one class of two", "classification"),
    "poisson": Choice(entry.poisson, "counts 0, 1, 2, ...", "counts"),
}

_FLOW = {"flow_length": Number(whole=True), "hidden": Number(whole=True)}
_RATE = {"rate": Number()}

GUIDES: dict[str, Choice] = {
    "mean-field": Choice(
        guides.MeanField,
        "independent Gaussians, one a weight; mean-field:INITIAL_SCALE",
        takes={"init_scale": Number()},
    ),
    "moment-propagation": Choice(
        guides.MomentPropagation,
        "the same, trained and predicting by mean and variance, without draws; moment-propagation:INITIAL_SCALE",
        takes={"init_scale": Number()},
    ),
    "low-rank": Choice(
        guides.LowRank, "a Gaussian of low rank plus diagonal; low-rank:RANK", takes={"rank": Number(whole=True)}
    ),
    "mnf": Choice(
        guides.MNF, "multiplicative normalizing flows, masked as in the paper; mnf:STEPS,HIDDEN", takes=_FLOW
    ),
    "mnf-realnvp": Choice(partial(guides.MNF, flow="realnvp"), "the same with RealNVP's flow", takes=_FLOW),
    "mnf-iaf": Choice(partial(guides.MNF, flow="iaf"), "the same with an inverse autoregressive flow", takes=_FLOW),
    "dropout": Choice(guides.Dropout, "Bernoulli noise on units; dropout:RATE, default 0.5", takes=_RATE),
    "dropout-gaussian": Choice(partial(guides.Dropout, noise="gaussian"), "Gaussian noise on units", takes=_RATE),
    "dropout-learned": Choice(
        partial(guides.Dropout, learn_rate=True), "Bernoulli noise on units at rates that are learned", takes=_RATE
    ),
    "mcbn": Choice(
        guides.BatchNorm,
        "statistics of random batches; mcbn:BATCHES, default 200",
        takes={"num_statistics": Number(whole=True)},
    ),
    "mcbn-gaussian": Choice(partial(guides.BatchNorm, statistics="gaussian"), "their Gaussian form", takes={}),
    "laplace": Choice(guides.Laplace, "a Gaussian around the mode, its curvature's diagonal", takes={}),
    "laplace-last-layer": Choice(
        partial(guides.Laplace, structure="last_layer"), "the same, the last layer's whole curvature", takes={}
    ),
    "map": Choice(guides.Map, "one point, the mode of the posterior; with --chains 10 a deep ensemble"),
}

METHODS: tuple[str, ...] = get_args(Method)
"""How predictions are made."""

NUTS = "nuts"
"""The one name of `--guide` that is no guide: the posterior is sampled."""

_PARTICLES = {"num_particles": Number(whole=True)}
_ALPHA = {"alpha": Number(positive=False), **_PARTICLES}

OBJECTIVES: dict[str, Choice] = {
    "elbo": Choice(objectives.ELBO, "the evidence lower bound; elbo:PARTICLES, default 1", takes=_PARTICLES),
    "bb-alpha": Choice(
        objectives.BBAlpha,
        "black-box α-divergences, from the ELBO (α = 0) to the predictive probability of each datum (α = 1); "
        "bb-alpha:ALPHA,PARTICLES, default 0.5,10",
        takes=_ALPHA,
    ),
    "bb-alpha-exact": Choice(
        partial(objectives.BBAlpha, exact=True),
        "the same before its approximation by many data, for guides that have a density",
        takes=_ALPHA,
    ),
    "predictive": Choice(
        objectives.Predictive, "bb-alpha with α = 1; predictive:PARTICLES, default 10", takes=_PARTICLES
    ),
    "renyi": Choice(
        objectives.Renyi,
        "the Rényi bound over values of all weights, for guides that have a density, from an importance-weighted bound "
        "(α = 0) to the ELBO (α = 1); renyi:ALPHA,PARTICLES, default 0.5,10",
        takes=_ALPHA,
    ),
    "iw": Choice(
        objectives.ImportanceWeighted,
        "the importance-weighted bound, renyi with α = 0; iw:PARTICLES, default 10",
        takes=_PARTICLES,
    ),
    "moment-elbo": Choice(
        objectives.MomentELBO,
        "elbo (α = 0) or bb-alpha by mean and variance of the network's outputs, without draws, for guides that have "
        "them; moment-elbo:ALPHA, default 0",
        takes={"alpha": Number(positive=False)},
    ),
}


def bad(option: str | None, message: str) -> typer.BadParameter:
    """The error of an option: exit code 2, the option's name in the message."""
    return typer.BadParameter(message, param_hint=option)


@contextmanager
def checking(option: str | None) -> Iterator[None]:
    """Turns what the library says of a wrong argument into the error of an option."""
    try:
        yield
    except (ValueError, TypeError, FileNotFoundError, NotImplementedError) as error:
        raise bad(option, str(error)) from error


def known(option: str, name: str, names: Mapping[str, Any]) -> str:
    """Checks a name.

    Args:
        option: The option it was given for.
        name: What was given.
        names: The names allowed.

    Returns:
        The name.

    Raises:
        typer.BadParameter: The name is not allowed; the message has the closest one that is.
    """
    if name not in names:
        raise bad(option, f"there is no {name!r}.{closest(name, names)} Known: {', '.join(names)}")
    return name


def known_data(name: str) -> str:
    """Checks the name of a data set given for `--data`.

    Returns:
        The name as `bnnzoo.data` has it.

    Raises:
        typer.BadParameter: There is none; the message has the closest one that is.
    """
    try:
        return data.info(name).name
    except ValueError:
        own = "Your own data: --csv FILE --target COLUMN"
        hint = closest(name, data.names())
        raise bad("--data", f"there is no data set {name!r}.{hint} Known: {', '.join(data.names())}. {own}") from None


def positive(option: str, value: float, what: str = "") -> float:
    """Checks a number: finite and above 0; `what` it is begins the message.

    Raises:
        typer.BadParameter: It is not.
    """
    if not (math.isfinite(value) and value > 0):
        raise bad(option, f"{what}must be a number above 0; given: {value:g}")
    return value


def numbers(option: str, text: str) -> list[float]:
    """Parses comma-separated numbers.

    Raises:
        typer.BadParameter: Something is no number.
    """
    values = []
    for part in text.split(","):
        try:
            values.append(float(part))
        except ValueError:
            raise bad(option, f"{part.strip()!r} is no number (in {text!r}; commas separate numbers)") from None
    return values


def parse(option: str, text: str, table: Mapping[str, Choice]) -> partial[Any]:
    """Parses `name` or `name:number,number`.

    Args:
        option: The option it was given for.
        text: What was given.
        table: The choices by name.

    Returns:
        The choice's function with the numbers bound.

    Raises:
        typer.BadParameter: An unknown name, no numbers, or numbers that the choice does not take.
    """
    name, colon, rest = text.partition(":")
    choice = table[known(option, name.strip(), table)]
    values = numbers(option, rest) if colon else []
    if len(values) > len(choice.numbers):
        raise bad(option, f"{name} takes {', '.join(choice.numbers) or 'no numbers'}; given: {rest}")
    bound: dict[str, float] = {}
    for (parameter, number), value in zip(choice.numbers.items(), values, strict=False):
        if number.positive:
            positive(option, value, f"{parameter} of {name} ")
        if number.whole and value != int(value):
            raise bad(option, f"{parameter} of {name} must be a whole number; given: {value:g}")
        bound[parameter] = int(value) if number.whole else value
    return partial(choice.make, **bound)


def inheriting(chosen: partial[Any], own: Callable[..., Any] | None, table: Mapping[str, Choice]) -> partial[Any]:
    """What an option names, with the entry's settings of the same thing that the option leaves open.

    Args:
        chosen: What `parse` returned.
        own: What the entry has in its place; None for nothing.
        table: The choices by name; what sets two of them apart is not inherited.
    """
    if not isinstance(own, partial) or own.func is not chosen.func:
        return chosen
    makes = [choice.make for choice in table.values() if isinstance(choice.make, partial)]
    apart = {name for make in makes if make.func is chosen.func for name in make.keywords}
    kept = {name: value for name, value in own.keywords.items() if name not in apart}
    return partial(chosen.func, **{**kept, **chosen.keywords})


def parse_prior(text: str) -> Callable[[], priors.Prior]:
    """Parses `--prior`.

    Returns:
        A function that builds the prior, tried once.

    Raises:
        typer.BadParameter: As `parse`, and where the prior itself refuses its numbers.
    """
    make = parse("--prior", text, PRIORS)
    with checking("--prior"):
        make()
    return make


def parse_noise(text: str) -> float | Distribution | None:
    """Parses `--noise`: `learned` (None), `prior` (a LogNormal) or a standard deviation in the target's units.

    Raises:
        typer.BadParameter: It is neither of the two words nor a number above 0.
    """
    words: dict[str, Distribution | None] = {"learned": None, "prior": NOISE}
    if text in words:
        return words[text]
    try:
        return positive("--noise", float(text))
    except ValueError:
        hint = closest(text, words)
        raise bad("--noise", f"must be learned, prior or a number above 0; given: {text!r}.{hint}") from None


def parse_hidden(text: str) -> tuple[int, ...]:
    """Parses `--hidden`: layer sizes such as `50,50`, or `none` for a linear model.

    Raises:
        typer.BadParameter: Something is no whole number of at least 1.
    """
    if text == "none":
        return ()
    sizes = [positive("--hidden", size) for size in numbers("--hidden", text)]
    if any(size != int(size) for size in sizes):
        raise bad("--hidden", f"layer sizes are whole numbers, such as 50,50; given: {text}")
    return tuple(int(size) for size in sizes)


def parse_test_size(value: float) -> float | int:
    """Parses `--test-size`: a fraction below 1, or a number of rows.

    Raises:
        typer.BadParameter: It is neither.
    """
    positive("--test-size", value)
    if value < 1:
        return value
    if value != int(value):
        raise bad("--test-size", f"must be a fraction below 1 or a whole number of rows; given: {value:g}")
    return int(value)
