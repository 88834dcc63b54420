"""Objectives on programs other than ours: plates that draw rows, guides within guides, rows that are all masked."""

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from gaussian_losses import evaluations
from pyro.nn import PyroModule
from statistical import assert_equal_means, assert_mean
from torch import nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, models
from bnnzoo._vectorize import pyro_settings
from bnnzoo.objectives import ELBO, BBAlpha, ImportanceWeighted, Renyi

COMPARISONS = 100


@pytest.mark.parametrize("objective", [ELBO(4), BBAlpha(1.0, 4), BBAlpha(1.0, 4, exact=True)], ids=repr)
def test_all_particles_have_the_rows_that_a_plate_draws(objective):
    """Losses of drawn minibatches have the mean of the loss on all data: rows differ far more than particles do."""
    y = torch.linspace(-10, 10, 20)

    def model(rows: int | None = None) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample_size=rows) as index:
            pyro.sample("y", dist.Normal(w, 1.0), obs=y[index])

    def guide(rows: int | None = None) -> None:
        pyro.sample("w", dist.Normal(0.5, 0.3))

    drawn, whole = (evaluations(objective, model, guide, rows, count=2000) for rows in (5, None))
    assert drawn.std() > 5 * whole.std()
    assert_equal_means(drawn, whole, COMPARISONS, "losses")


class Within(PyroModule):
    """A guide of the user's that runs one of ours."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize(
    ("make", "objective", "message"),
    [
        (guides.Dropout, Renyi(0.5, 3), r"guides\.Dropout trains has no density"),
        (guides.Map, ImportanceWeighted(3), r"guides\.Map trains has no density"),
        (guides.BatchNorm, BBAlpha(0.5, 3), r"the draw of guides\.BatchNorm is the batch itself"),
    ],
)
def test_what_a_guide_consists_of_is_checked_too(make, objective, message):
    bnn = BayesianNetwork(models.MLP(2, 1, (4,), batch_norm=make is guides.BatchNorm), likelihoods.Gaussian(0.5))
    guide = Within(make(bnn))
    with pyro_settings(bnn, guide), pytest.raises(ValueError, match=message):
        objective.differentiable_loss(bnn, guide, torch.randn(6, 2), torch.randn(6))


def test_a_pruned_posterior_has_no_density_to_weigh_by():
    bnn = BayesianNetwork(nn.Linear(2, 1), likelihoods.Gaussian(0.5))
    data = (torch.randn(6, 2), torch.randn(6))
    with pytest.raises(ValueError, match=r"guides\.PrunedMeanField trains has no density"):
        fit(bnn, guides.PrunedMeanField(bnn), data, objective=ImportanceWeighted(3), epochs=1)


@pytest.mark.parametrize("mask", [False, torch.zeros(4, dtype=torch.bool)], ids=["all", "each"])
@pytest.mark.parametrize("exact", [False, True])
def test_a_batch_whose_rows_are_all_masked_is_the_divergence(exact, mask):
    def model() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=mask), pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(w, 1.0), obs=torch.ones(4))

    def guide() -> None:
        pyro.sample("w", dist.Normal(0.5, 0.3))

    losses = evaluations(BBAlpha(0.5, 3, exact=exact), model, guide, count=4000)
    expected = torch.distributions.kl_divergence(dist.Normal(0.5, 0.3), dist.Normal(0.0, 1.0)).double()
    if exact:
        assert_mean(losses, expected, COMPARISONS, "loss")
    else:
        torch.testing.assert_close(losses, expected.expand(4000), rtol=1e-5, atol=1e-5)


def test_exact_is_yes_or_no():
    with pytest.raises(ValueError, match="exact must be True or False, not 'no'"):
        BBAlpha(exact="no")
