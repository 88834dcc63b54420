"""Every guide keeps the contract of `bnnzoo.testing`; a new one joins by one line."""

from dataclasses import replace
from functools import partial

import pytest
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal

from bnnzoo import guides, priors, testing
from bnnzoo.testing import BATCH_NORM_PROBLEMS, PROBLEMS, GuideCase

_mnf = partial(guides.MNF, hidden=4, r_hidden=4)


def _pruned(bnn):
    """Every third element is fixed at 0."""
    guide = guides.PrunedMeanField(bnn)
    guide.kept[::3] = False
    return guide


_LOG_UNIFORM = [replace(problem, prior=priors.LogUniform()) for problem in PROBLEMS[:2]]

#: A low-rank factor that is large beside the diagonal is singular in single precision.
_MILD = (-3.0, 0.0, 3.0)

CASES = {
    "mean-field": GuideCase(guides.MeanField),
    "mean-field, dense": GuideCase(partial(guides.MeanField, sampling="dense")),
    "mean-field, flipout": GuideCase(partial(guides.MeanField, sampling="flipout")),
    "mean-field, log-uniform": GuideCase(guides.MeanField, _LOG_UNIFORM, bound=False, pyro_elbo=False),
    "map": GuideCase(guides.Map, bound=False),
    "moment propagation": GuideCase(guides.MomentPropagation),
    "mnf, masked": GuideCase(_mnf, steps=300),
    "mnf, realnvp": GuideCase(partial(_mnf, flow="realnvp"), PROBLEMS[::2]),
    "mnf, iaf": GuideCase(partial(_mnf, flow="iaf"), PROBLEMS[::2]),
    "dropout": GuideCase(guides.Dropout, bound=False),
    "dropout, gaussian": GuideCase(partial(guides.Dropout, noise="gaussian"), bound=False),
    "dropout, learned": GuideCase(partial(guides.Dropout, learn_rate=True), bound=False),
    "batch norm": GuideCase(guides.BatchNorm, BATCH_NORM_PROBLEMS, bound=False),
    "batch norm, gaussian": GuideCase(
        partial(guides.BatchNorm, statistics="gaussian"), BATCH_NORM_PROBLEMS, bound=False
    ),
    "pruned": GuideCase(_pruned, bound=False, pyro_elbo=False),
    "low rank": GuideCase(partial(guides.LowRank, rank=2), unlisted=["latent"], extremes=_MILD),
    "laplace": GuideCase(guides.Laplace, PROBLEMS[:2], bound=False),
    "laplace, last layer": GuideCase(
        partial(guides.Laplace, structure="last_layer"),
        PROBLEMS[:2],
        bound=False,
        structured=False,
        unlisted=["last_layer"],
    ),
    "pyro's normal": GuideCase(AutoNormal),
    "pyro's low rank": GuideCase(partial(AutoLowRankMultivariateNormal, rank=2), extremes=_MILD),
}


@pytest.mark.parametrize("check", testing.CHECKS)
@pytest.mark.parametrize("case", CASES)
def test_contract(case, check):
    testing.CHECKS[check](CASES[case])
