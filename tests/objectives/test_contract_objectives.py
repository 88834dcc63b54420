"""Every objective keeps the contract of `bnnzoo.testing`; a new one joins by one line."""

import math
from functools import partial

import pytest

from bnnzoo import guides, objectives, testing
from bnnzoo.testing import ObjectiveCase

#: Weights are values for all data, which a guide that is a point has no density for.
_joint = partial(ObjectiveCase, points=False)

#: Further values of α, on one problem.
_briefly = testing.PROBLEMS[:1]


def _by_moments(alpha):
    """It has no particles; only of one hidden layer and Gaussian noise is it the ELBO itself."""

    both = [guides.MeanField, guides.MomentPropagation]
    make = partial(objectives.MomentELBO, alpha)
    return ObjectiveCase(make, testing.PROBLEMS[:2], both, elbo=False, draws=False)


CASES = {
    "elbo": ObjectiveCase(objectives.ELBO),
    "bb-alpha": ObjectiveCase(objectives.BBAlpha),
    "bb-alpha, 0": ObjectiveCase(partial(objectives.BBAlpha, 0.0), _briefly),
    "bb-alpha, negative": ObjectiveCase(partial(objectives.BBAlpha, -1.0), _briefly),
    "bb-alpha, exact": _joint(partial(objectives.BBAlpha, exact=True)),
    "predictive": ObjectiveCase(objectives.Predictive, _briefly),
    "renyi": _joint(objectives.Renyi, additive=False),
    "renyi, negative": _joint(partial(objectives.Renyi, -1.0), _briefly, additive=False),
    "renyi, largest": _joint(partial(objectives.Renyi, -math.inf), _briefly, additive=False),
    "moment-elbo": _by_moments(0.0),
    "moment-elbo, 0.5": _by_moments(0.5),
    "importance-weighted": _joint(objectives.ImportanceWeighted, _briefly, additive=False),
}


#: Chains are the same matter for any α.
TESTS = [(c, k) for c in CASES for k in testing.OBJECTIVE_CHECKS if k != "chains" or CASES[c].problems is not _briefly]


@pytest.mark.parametrize(("case", "check"), TESTS)
def test_contract(case, check):
    testing.OBJECTIVE_CHECKS[check](CASES[case])
