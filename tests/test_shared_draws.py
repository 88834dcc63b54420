"""What all draws of a prediction share, as the weights of a point, is computed once."""

import pyro.distributions as dist
import pytest
import torch
from batch_norms import X, Y, convolutional, dense, images, model
from torch import nn

from bnnzoo import fit, guides, likelihoods
from bnnzoo import posterior as posterior_module


@pytest.mark.parametrize("kind", ["dense", "conv", "map"])
def test_what_all_draws_share_is_computed_once_to_the_same_result(kind, monkeypatch):
    network, x = (convolutional(2), images(2)) if kind == "conv" else (dense(), X)
    bnn = model(network, likelihoods.Gaussian(dist.LogNormal(-1.0, 0.5)))
    guide = guides.Map(bnn) if kind == "map" else guides.BatchNorm(bnn)
    posterior = fit(bnn, guide, (x, Y), epochs=2, batch_size=16, chains=2)
    levels = []
    linear = torch.nn.functional.linear

    def record(input, weight, bias=None):
        levels.append(torch._C._functorch.maybe_get_level(weight))
        return linear(input, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", record)
    once, mapped_once = posterior.predict(x, num_samples=6), max(levels)
    levels.clear()
    monkeypatch.setattr(posterior_module, "_is_repeated", lambda value: False)
    each, mapped_each = posterior.predict(x, num_samples=6), max(levels)
    assert mapped_once < mapped_each  # over the chains; over chains and draws
    for name, value in each.parameters.items():
        torch.testing.assert_close(once.parameters[name], value, rtol=1e-5, atol=1e-6)


def test_a_network_that_is_random_by_itself_draws_anew_for_every_draw():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x):
            return self.linear(nn.functional.dropout(x, 0.5, training=True))

    bnn = model(Noisy())
    posterior = fit(bnn, guides.Map(bnn), (X, Y), epochs=1)
    assert posterior.predict(X, num_samples=4).draws.std(1).max() > 0.01
