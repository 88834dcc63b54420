"""Which guide trains under which objective, asked of the library: the README's table of guides and objectives.

    python benchmarks/matrix.py

Every pair trains a step: a network of one hidden layer, two chains, minibatches, a noise scale with a prior; as a
regression and as a classification. Rows of guides with options (`MeanField`'s samplings, `MNF`'s flows) try all.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, objectives
from bnnzoo._contract.measure import call, prepare
from bnnzoo._vectorize import Pair, seeded

_mnf = partial(guides.MNF, flow_length=1, hidden=16, r_flow_length=1, r_hidden=16)

#: Guides by name. What precedes a comma is the name of the row, so that options share one.
GUIDES: dict[str, Callable[[BayesianNetwork], nn.Module]] = {
    "`Map`": guides.Map,
    "`MeanField`, local": guides.MeanField,
    "`MeanField`, dense": partial(guides.MeanField, sampling="dense"),
    "`MeanField`, flipout": partial(guides.MeanField, sampling="flipout"),
    "`MomentPropagation`": guides.MomentPropagation,
    "`LowRank`": partial(guides.LowRank, rank=2),
    "`MNF`, masked": _mnf,
    "`MNF`, realnvp": partial(_mnf, flow="realnvp"),
    "`MNF`, iaf": partial(_mnf, flow="iaf"),
    "`Dropout`": partial(guides.Dropout, rate=0.2),
    "`BatchNorm`": guides.BatchNorm,
    "`Laplace`": guides.Laplace,
    "`AutoNormal` (Pyro)": AutoNormal,
    "`AutoLowRankMultivariateNormal` (Pyro)": partial(AutoLowRankMultivariateNormal, rank=2),
}

#: Objectives by name, from their number of particles.
OBJECTIVES: dict[str, Callable[[int], objectives.Objective]] = {
    "`ELBO()`": objectives.ELBO,
    "`BBAlpha(0.5)`": partial(objectives.BBAlpha, 0.5),
    "`Predictive()`": objectives.Predictive,
    "`BBAlpha(0.5, exact=True)`": partial(objectives.BBAlpha, 0.5, exact=True),
    "`Renyi(0.5)`": partial(objectives.Renyi, 0.5),
    "`ImportanceWeighted()`": objectives.ImportanceWeighted,
    "`MomentELBO()`": lambda particles: objectives.MomentELBO(),  # it has none
}

PARTICLES = 4

#: What a cell may say, and what that means.
CODES = {
    "yes": "trains.",
    "as ELBO": "trains, but the guide is a point in training: all particles are alike, and the value is the ELBO's.",
    "no density": "an error: draws are weighed by p / q, and what the guide trains has no density q of the weights.",
    "no moments": "an error: the guide's weights have no mean and variance of their own to propagate.",
    "one draw": "an error: the draw is the batch itself, one for all particles; this would be the ELBO at K times the "
    "price.",
}

#: Parts of error messages, and what a cell says for them.
REASONS = {
    "has no density of the weights": "no density",
    "is the batch itself": "one draw",
    "mean and variance to propagate": "no moments",
}


@dataclass(frozen=True)
class Task:
    """A kind of data: a network of `outputs` outputs, a likelihood, targets [24]."""

    outputs: int
    likelihood: likelihoods.Likelihood
    y: Tensor

    def bnn(self, normalized: bool) -> BayesianNetwork:
        """The model; batch normalization where the guide is about it."""
        norm = [nn.BatchNorm1d(4)] if normalized else []
        with seeded(1):
            network = nn.Sequential(nn.Linear(3, 4), *norm, nn.Tanh(), nn.Linear(4, self.outputs))
        return BayesianNetwork(network, self.likelihood, dist.Normal(0.0, 1.0))


X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))

TASKS = {
    "Gaussian": Task(1, likelihoods.Gaussian(dist.LogNormal(-0.5, 0.3)), 2.0 * X.sum(1)),
    "Categorical": Task(3, likelihoods.Categorical(), (X[:, 0] > 0).long() + (X[:, 1] > 0).long()),
}


def pair(guide: str, task: str) -> Pair:
    """A new model and a new guide of it, in training."""
    bnn = TASKS[task].bnn(normalized=GUIDES[guide] is guides.BatchNorm)
    with seeded(2):
        return prepare(bnn, GUIDES[guide](bnn), X, TASKS[task].y)


def verdict(guide: str, objective: str, task: str) -> str:
    """What the library makes of a guide under an objective: one of `CODES`.

    Raises:
        ValueError: If the library refuses for another reason than is known here.
    """
    own, y = pair(guide, task), TASKS[task].y
    loss = OBJECTIVES[objective](PARTICLES)
    try:
        fit(own.model, own.guide, (X, y), objective=loss, epochs=1, batch_size=12, chains=2)
    except ValueError as error:
        codes = [code for part, code in REASONS.items() if part in str(error)]
        if not codes:
            raise
        return codes[0]
    if type(loss) is objectives.ELBO:
        return "yes"
    values = []
    for seed, each in enumerate((loss, objectives.ELBO())):
        with seeded(seed):
            values.append(call(own, each.differentiable_loss, X, y))
    return "as ELBO" if torch.allclose(*values) else "yes"


def matrix(ask: Callable[[str, str, str], str] = verdict, tasks: Iterable[str] = TASKS) -> dict[str, dict[str, str]]:
    """The cells by row and column; where options or tasks differ, all that they say, with a slash between."""
    rows: dict[str, dict[str, str]] = {}
    for name, group in groupby(GUIDES, key=lambda guide: guide.partition(",")[0]):
        options = list(group)
        cells = {o: dict.fromkeys(ask(guide, o, task) for guide in options for task in tasks) for o in OBJECTIVES}
        rows[name] = {objective: " / ".join(said) for objective, said in cells.items()}
    return rows


def markdown(cells: dict[str, dict[str, str]]) -> str:
    """The table, and below it what its cells say."""
    lines = ["| | " + " | ".join(OBJECTIVES) + " |", "|" + " --- |" * (1 + len(OBJECTIVES))]
    lines += ["| " + " | ".join([guide, *row.values()]) + " |" for guide, row in cells.items()]
    said = {code for row in cells.values() for cell in row.values() for code in cell.split(" / ")}
    return "\n".join([*lines, "", *(f'- "{code}": {text}' for code, text in CODES.items() if code in said)])


def main() -> None:
    from common import describe, environment, parser, start, write  # tests load this module from another folder

    arguments = parser(__doc__.splitlines()[0]).parse_args()
    start(arguments)
    cells = matrix(tasks=["Gaussian"] if arguments.smoke else TASKS)
    print(markdown(cells), "\n")
    print(describe(environment(arguments)))
    write(arguments, cells)


if __name__ == "__main__":
    main()
