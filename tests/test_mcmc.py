"""`sample`: NUTS as a posterior. Exactness on conjugate models is tested with the network."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide.initialization import init_to_value
from torch import nn

from bnnzoo import BayesianNetwork, Posterior, data, guides, likelihoods, priors, sample
from bnnzoo._vectorize import seeded

N = 30
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(1) + 0.3 * torch.randn(N, generator=torch.Generator().manual_seed(1))


def model(likelihood=None, prior=None, net=None):
    with seeded(0):
        net = net or nn.Linear(2, 1)
    return BayesianNetwork(net, likelihood or likelihoods.Gaussian(0.3), prior or priors.Normal(0.0, 1.0))


def quick(bnn=None, dataset=(X, Y), **settings):
    return sample(bnn or model(), dataset, **{"num_samples": 20, "warmup_steps": 20, "max_tree_depth": 5, **settings})


NOISE = likelihoods.Gaussian(dist.HalfNormal(1.0))


@pytest.mark.parametrize("chains", [1, 2])
def test_shapes_and_information(chains):
    posterior = quick(model(NOISE), chains=chains, warmup_steps=100)
    assert isinstance(posterior, Posterior)
    assert isinstance(posterior.guide, guides.Empirical)
    assert posterior.chains == chains
    assert posterior.history == {}
    draws = posterior.sample(20)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "weight": (chains, 20, 1, 2),
        "bias": (chains, 20, 1),
        "noise": (chains, 20),
    }
    assert (draws["noise"] > 0).all()
    assert posterior.info["method"] == "NUTS"
    assert posterior.info["num_data"] == N
    assert posterior.info["divergences"] == [0] * chains
    assert len(posterior.info["acceptance_rate"]) == chains
    assert all(0.4 < rate <= 1 for rate in posterior.info["acceptance_rate"])


def test_seeds():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, third = (quick(chains=2, seed=seed).sample(20)["weight"] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert not torch.equal(first[0], first[1])


def test_chains_do_not_depend_on_how_many_there_are():
    assert torch.equal(quick(chains=1).sample(20)["weight"][0], quick(chains=2).sample(20)["weight"][0])


def test_global_state_does_not_matter():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = quick().sample(20)["weight"]
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert torch.equal(first, quick().sample(20)["weight"])


def test_the_model_passed_is_not_changed():
    bnn = model().train()
    before = {name: value.clone() for name, value in bnn.state_dict().items()}
    quick(bnn)
    assert bnn.training
    for name, value in bnn.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_draws(count):
    posterior = quick(num_samples=count, warmup_steps=5)
    assert posterior.sample(count)["weight"].shape == (1, count, 1, 2)
    assert 0 <= posterior.info["acceptance_rate"][0] <= 1


def test_acceptance_is_counted_after_the_warmup():
    # Steps that are far too long are refused whatever the warmup did.
    posterior = quick(warmup_steps=0, step_size=10.0, adapt_step_size=False, num_samples=30)
    assert posterior.info["acceptance_rate"][0] < 0.2
    assert posterior.info["divergences"][0] > 0


def test_picked_draws_are_evenly_spaced():
    posterior = quick(num_samples=21, chains=2)
    every = posterior.sample(21)["weight"]
    assert len(every[0, :, 0, 0].unique()) > 10
    assert torch.equal(posterior.sample(11)["weight"], every[:, ::2])
    assert torch.equal(posterior.sample(3)["weight"], every[:, [0, 10, 20]])
    assert torch.equal(posterior.sample(1)["weight"], every[:, :1])
    assert torch.equal(posterior.sample(21, seed=5)["weight"], every)
    picked = posterior.guide.pick(13)
    assert len(picked.unique()) == 13
    with pytest.raises(ValueError, match="holds 21 draws a chain; 22 were asked for"):
        posterior.sample(22)
    with pytest.raises(ValueError, match="holds 21 draws a chain; 200 were asked for"):
        posterior.predict(X, 200)


def test_what_is_not_said_is_at_most_what_there_is():
    posterior = quick(num_samples=7)
    assert posterior.predict(X).shape[1] == 7
    assert posterior.sample()["weight"].shape[1] == 7
    assert posterior.summarize(X).num_samples == 7
    with pytest.raises(ValueError, match="holds 7 draws"):
        posterior.predict(X, num_samples=8)


def test_predictions_are_the_networks_for_the_draws():
    posterior = quick(model(NOISE), num_samples=12, chains=2)
    draws = posterior.sample(12)
    expected = torch.einsum("ni,cdi->cdn", X, draws["weight"][:, :, 0]) + draws["bias"]
    prediction = posterior.predict(X, 12)
    torch.testing.assert_close(prediction.draws, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        prediction.parameters["scale"].expand(2, 12, N), draws["noise"][..., None].expand(2, 12, N)
    )
    few = posterior.predict(X, 4, max_memory=2 * 2 * 2 * 4 * N * 4 + 2000)
    torch.testing.assert_close(few.draws, posterior.predict(X, 4).draws)


def test_network_with_hidden_units_and_classes():
    with seeded(0):
        net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    labels = (X[:, 0] > 0).long()
    posterior = quick(
        model(likelihoods.Categorical(), net=net), (X, labels), num_samples=20, warmup_steps=40, max_tree_depth=5
    )
    assert (posterior.predict(X, 20).classes == labels).float().mean() > 0.85


def test_standardized_data():
    dataset = data.Dataset(5 + 3 * X, 100 + 20 * Y).with_standardization()
    posterior = quick(dataset=dataset, num_samples=40, warmup_steps=40)
    error = (posterior.predict(dataset.x, 40).mean - dataset.y).square().mean().sqrt()
    assert error < 0.5 * dataset.y.std()


def test_dropout_and_batch_statistics_are_as_in_evaluation():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
    posterior = quick(model(net=net), num_samples=3, warmup_steps=3)
    assert posterior._buffers["model.network.1.num_batches_tracked"].tolist() == [0]
    assert not posterior.bnn.training


def test_frozen_parameters_need_no_prior():
    with seeded(0):
        net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    net[0].requires_grad_(False)
    posterior = quick(model(net=net), num_samples=4, warmup_steps=4)
    assert set(posterior.sample(4)) == {"2.weight", "2.bias"}


def test_starts_at_draws_from_the_prior_or_as_told():
    # No warmup and a step size of nothing: chains stay where they start.
    still = {"num_samples": 1, "warmup_steps": 0, "step_size": 1e-12, "adapt_step_size": False, "max_tree_depth": 1}
    prior = priors.Normal(100.0, 0.1)
    starts = quick(model(prior=prior), chains=20, **still).sample(1)["weight"].flatten()
    assert (starts - 100).abs().max() < 0.6
    assert starts.std() > 0.03
    values = {"weight": torch.full((1, 2), 7.0), "bias": torch.full((1,), 5.0)}
    told = quick(init_strategy=init_to_value(values=values), **still).sample(1)
    torch.testing.assert_close(told["weight"][0, 0], values["weight"])


def test_deterministic_and_learned_parameters_are_refused():
    with pytest.raises(ValueError, match=r"it does not optimize: network\.bias need a prior or a fixed value"):
        quick(model(prior={"bias": None, "*": priors.Normal(0.0, 1.0)}))
    with pytest.raises(ValueError, match=r"likelihood\.log_scale need a prior"):
        quick(model(likelihoods.Gaussian()))


def test_improper_priors_are_refused():
    with pytest.raises(ValueError, match="the prior of weight, bias is LogUniform"):
        quick(model(prior=priors.LogUniform()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, not 0"),
        ({"num_samples": 2.5}, "num_samples must be an integer"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer of at least 0, not -1"),
        ({"chains": 0}, "chains must be an integer of at least 1, not 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, not -1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        quick(**settings)


def test_data_that_do_not_fit():
    x = X.clone()
    x[0, 0] = float("nan")
    with pytest.raises(ValueError, match="x has 1 NaN"):
        quick(dataset=(x, Y))
    with pytest.raises(ValueError, match=r"the network fails on inputs of shape \[2, 1\]"):
        quick(dataset=(X[:, :1], Y))
    with pytest.raises(ValueError, match="rows"):
        quick(dataset=(X, Y[1:]))


def test_progress_is_silent_without_a_terminal(capfd, monkeypatch):
    for name in ("CI", "PYTEST_XDIST_WORKER"):  # Pyro shows no bar where these are set
        monkeypatch.delenv(name, raising=False)
    quick(num_samples=3, warmup_steps=3)
    assert capfd.readouterr() == ("", "")
    quick(num_samples=3, warmup_steps=3, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Sample" in err
