"""Dropout layers of a network under mapped particles and chains: every particle, row and chain drops for itself.

The inputs are powers of two, so that the network's output, their sum behind the dropout layer, spells the mask.
"""

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, objectives

UNITS, ROWS, PARTICLES, CHAINS = 8, 50, 4, 3

#: Dropout layers: the shape of what they drop, and a guide that lets them.
LAYERS = {
    "Dropout": (nn.Dropout, (UNITS,), partial(guides.Dropout, from_dropout_layers=True)),
    "Dropout1d": (nn.Dropout1d, (UNITS, 1), guides.Map),
    "Dropout2d": (nn.Dropout2d, (UNITS, 1, 1), guides.Map),
}


@pytest.fixture(autouse=True)
def _sums(monkeypatch):
    """Linear layers start, in every chain, as the sum of their inputs."""

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    monkeypatch.setattr(nn.Linear, "reset_parameters", reset_parameters)


class Alike(objectives.Objective):
    """The share of pairs with the same mask: of two particles of a row, or of two rows of a particle."""

    def __init__(self, num_particles: int, rows: bool) -> None:
        super().__init__(num_particles)
        self.rows = rows

    def combine(self, data, divergence):
        ((log_likelihood, _),) = data
        values = log_likelihood if self.rows else log_likelihood.T
        first, second = torch.triu_indices(values.shape[1], values.shape[1], offset=1)
        same = values[:, first] == values[:, second]
        return same.to(values.dtype).mean() + 0.0 * (divergence.sum() + log_likelihood.sum())


class Mean(objectives.Objective):
    """The mean log likelihood, in which the masks of all rows and particles show."""

    def combine(self, data, divergence):
        ((log_likelihood, _),) = data
        return log_likelihood.mean() + 0.0 * divergence.sum()


def losses(name: str, objective: objectives.Objective, chains: int) -> Tensor:
    """The loss of each chain's first step, [chain]; all chains have the same weights and rows.

    The dropout layer comes first: nothing differs between particles or rows before it.
    """
    layer, shape, guide = LAYERS[name]
    network = nn.Sequential(layer(0.5), nn.Flatten(), nn.Linear(UNITS, 1))
    bnn = BayesianNetwork(network, likelihoods.Gaussian(1e3), dist.Normal(0.0, 1.0))
    x = (2.0 ** torch.arange(UNITS)).expand(ROWS, UNITS).reshape(ROWS, *shape)
    y = torch.full((ROWS,), -1000.0)  # below all outputs: no two of them are equally probable
    posterior = fit(bnn, guide(bnn), (x, y), objective=objective, epochs=1, batch_size=ROWS, chains=chains)
    return torch.as_tensor(posterior.history["loss"][:, 0])


@pytest.mark.parametrize("chains", [1, CHAINS])
@pytest.mark.parametrize("rows", [False, True], ids=["particles", "rows"])
@pytest.mark.parametrize("name", LAYERS)
def test_masks_are_drawn_for_each(name, rows, chains):
    shares = losses(name, Alike(PARTICLES, rows), chains)
    chance = 2.0**-UNITS  # that two masks of UNITS fair coins are the same
    pairs = ROWS * PARTICLES * ((ROWS if rows else PARTICLES) - 1) / 2
    # Any two pairs are independent, those that share a mask too: their variances add up.
    error = (chance * (1 - chance) / pairs) ** 0.5
    assert shares.shape == (chains,)
    assert bool((shares < chance + 8 * error).all()), f"{shares} of the pairs are alike, {chance} by chance"


@pytest.mark.parametrize("particles", [1, PARTICLES])
@pytest.mark.parametrize("name", LAYERS)
def test_chains_draw_masks_of_their_own(name, particles):
    assert len(losses(name, Mean(particles), CHAINS).unique()) == CHAINS
