"""Normalization by propagated statistics: what it makes of data, its gradients, random weights."""

import copy

import pytest
import torch
from statistical import assert_equal_means, assert_mean
from torch import nn

from bnnzoo import BayesianNetwork, fit, guides, likelihoods, objectives
from bnnzoo.moments import (
    MomentNorm,
    Moments,
    NoMomentsError,
    Normalized,
    calibrate,
    initialize,
    per_layer,
    propagate,
    statistics,
)

COMPARISONS = 60

FIT = {"chains": 2, "progress": False}


def network(affine: bool = True) -> nn.Sequential:
    """Windows do not overlap and channels do not mix: statistics of Gaussian pixels are exact."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 2, stride=2, bias=False), MomentNorm(3, affine), nn.LeakyReLU(0.1)),
        *(nn.Conv2d(3, 3, 2, stride=2, groups=3), MomentNorm(3, affine)),
    )


def small() -> Normalized:
    torch.manual_seed(0)
    layers = nn.Linear(3, 8, bias=False), MomentNorm(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2), MomentNorm(2)
    return Normalized(nn.Sequential(*layers), torch.tensor([0.1, 0.2, 0.3]), 1.5)


def test_outputs_have_mean_0_and_variance_1_over_a_data_set():
    normalized = Normalized(network(), 0.7, 2.5)
    x = 0.7 + 2.5**0.5 * torch.randn(6000, 1, 16, 16)
    found = {}
    for index in (1, 4):
        normalized.network[index].register_forward_hook(lambda m, args, out, index=index: found.update({index: out}))
    with torch.no_grad():
        normalized(x)
    for output in found.values():
        assert_mean(output.flatten(2).mean(2), torch.zeros(3), COMPARISONS)
        assert_mean(output.square().flatten(2).mean(2), torch.ones(3), COMPARISONS, "variance")


def test_it_does_what_batch_normalization_of_a_large_batch_does():
    normalized = Normalized(network(), 0.7, 2.5)
    batch_norm = copy.deepcopy(normalized.network)
    for index in (1, 4):
        batch_norm[index] = nn.BatchNorm2d(3)
        with torch.no_grad():
            for layer in (normalized.network[index], batch_norm[index]):
                layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
                layer.bias.copy_(torch.tensor([0.1, 0.2, -0.3]))
    x = 0.7 + 2.5**0.5 * torch.randn(4000, 1, 16, 16)
    with torch.no_grad():
        difference = normalized(x) - batch_norm(x)
    assert difference.abs().max() < 0.1
    assert difference.std() < 0.02


def test_training_and_eval_mode_batches_and_rows_are_all_the_same():
    normalized = Normalized(network(), 0.7, 2.5)
    x = torch.randn(8, 1, 8, 8)
    expected = normalized.train()(x)
    torch.testing.assert_close(normalized.eval()(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(normalized(x[:1]), expected[:1])


def test_dropout_counts_and_is_left_as_it_was():
    normalized = small()
    x = torch.randn(5, 3)
    assert not torch.equal(normalized.train()(x), normalized(x))
    assert normalized.network[3].training
    assert torch.equal(normalized.eval()(x), normalized(x))
    assert not normalized.network[3].training
    # over inputs and masks the last layer's outputs are standard
    normalized.train()
    x = torch.tensor([0.1, 0.2, 0.3]) + 1.5**0.5 * torch.randn(100_000, 3)
    with torch.no_grad():
        output = normalized(x)
    assert output.mean(0).abs().max() < 0.02
    assert (statistics(normalized, torch.tensor([0.1, 0.2, 0.3]), 1.5)["network.5"].variance - 1).abs().max() < 1e-4


def test_gradients_go_through_the_statistics():
    normalized = Normalized(network(), 0.7, 2.5).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in normalized.named_parameters()]

    def output(x, *weights):
        return torch.func.functional_call(normalized, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *normalized.parameters()))
    # outputs do not depend on the scale of weights, nor on biases, in front
    loss = normalized(x).square().sum()
    gradients = torch.autograd.grad(loss, [normalized.network[0].weight, normalized.network[3].bias])
    along = (gradients[0] * normalized.network[0].weight).sum((1, 2, 3))
    assert along.abs().max() < 1e-3 * gradients[0].abs().max()
    assert gradients[1].abs().max() < 1e-9


def test_parameters_state_and_copies():
    normalized = small()
    assert list(normalized.network[1].state_dict()) == ["weight", "bias"]
    assert "data_variance" in dict(normalized.named_buffers())
    assert not list(MomentNorm(3, affine=False).parameters())
    x = torch.randn(5, 3)
    normalized.eval()(x).sum().backward()
    twin = copy.deepcopy(normalized)
    with torch.no_grad():
        twin.network[0].weight.mul_(torch.arange(1.0, 9.0)[:, None])
        twin.network[1].weight.add_(1)
        twin.network[1].reset_parameters()
    torch.testing.assert_close(twin(x), normalized(x), rtol=1e-3, atol=1e-3)
    fresh = small().eval()
    fresh.load_state_dict(normalized.state_dict())
    assert torch.equal(fresh(x), normalized(x))
    assert normalized.double()(x.double()).dtype == torch.float64


def test_moments_go_through():
    normalized = small().eval()
    x = torch.randn(50, 3)
    output = propagate(normalized, x, 0.2)
    assert torch.equal(propagate(normalized, x, mode="ap1").loc, normalized(x))
    truth = propagate(normalized, x, 0.2, mode="sample", num_samples=400)
    assert (output.loc - truth.loc).abs().mean() < 0.1 * truth.scale.mean()
    # statistics are no call of the layers: names, and factors, are those of the inputs' pass
    assert list(per_layer(normalized, x, 0.2)) == [f"network.{index}" for index in range(6)]
    assert set(calibrate(normalized, x, 0.2).factors) == {f"network.{index}" for index in range(6)}


def test_networks_with_it_can_be_initialized():
    torch.manual_seed(0)
    layers = nn.Linear(3, 8), MomentNorm(8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)
    normalized = Normalized(nn.Sequential(*layers), 0.2, 1.5)
    initialize(normalized, 0.2, 1.5)
    found = statistics(normalized, 0.2, 1.5)
    for index in (0, 1, 3, 5):
        torch.testing.assert_close(found[f"network.{index}"].variance, torch.ones(layers[index].weight.shape[0]))


def bayesian(rate: float = 0.0) -> BayesianNetwork:
    model = small()
    model.network[3].p = rate
    return BayesianNetwork(model, likelihoods.Categorical())


def test_weights_drawn_anew_have_statistics_of_their_own():
    bnn = bayesian()
    draws = [{name: torch.randn_like(value) for name, value in bnn.initial_values().items()} for _ in range(3)]
    x = torch.randn(5, 3)
    stacked = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    mapped = torch.func.vmap(lambda values: bnn.output(values, x))(stacked)
    torch.testing.assert_close(mapped, torch.stack([bnn.output(draw, x) for draw in draws]), rtol=1e-4, atol=1e-5)


def test_statistics_of_weights_known_by_their_moments():
    bnn = bayesian()
    x = torch.tensor([0.1, 0.2, 0.3]) + 1.5**0.5 * torch.randn(40_000, 3)
    values = {name: Moments(value, torch.full_like(value, 0.05)) for name, value in bnn.initial_values().items()}
    for name in ("network.1.weight", "network.1.bias", "network.5.weight", "network.5.bias"):
        values[name] = bnn.initial_values()[name]
    output = bnn.output(values, Moments(x))
    assert isinstance(output, Moments)
    assert output.loc.mean(0).abs().max() < 0.05
    # over data and weights, to the accuracy of Gaussian inputs of the rectifier
    total = output.variance.mean(0) + output.loc.var(0)
    assert (total - 1).abs().max() < 0.1
    # the layer's own weight and bias may be random too
    both = {name: Moments(value, torch.full_like(value, 0.05)) for name, value in bnn.initial_values().items()}
    assert (bnn.output(both, Moments(x)).variance > output.variance).all()


@pytest.mark.parametrize(
    ("guide", "objective"),
    [
        (guides.Map, objectives.ELBO()),
        (guides.MeanField, objectives.ELBO()),
        (lambda bnn: guides.MeanField(bnn, sampling="flipout"), objectives.ELBO()),
        (lambda bnn: guides.MeanField(bnn, sampling="dense"), objectives.BBAlpha(0.5, 3)),
        (guides.Dropout, objectives.ELBO()),
        (guides.MeanField, objectives.MomentELBO()),
    ],
)
def test_guides_train_it(guide, objective):
    bnn = bayesian()
    x = torch.randn(120, 3)
    y = (x[:, 0] > 0).long()
    posterior = fit(bnn, guide(bnn), (x, y), objective=objective, epochs=30, batch_size=60, lr=0.1, **FIT)
    prediction = posterior.predict(x, num_samples=20)
    assert (prediction.probs.argmax(-1) == y).float().mean() > 0.85


def test_a_pass_of_sampled_weights_has_the_statistics_of_their_distribution():
    """Local reparameterization draws outputs: statistics are those over the weights, and the draws are the data's."""
    torch.manual_seed(0)
    model = Normalized(nn.Sequential(nn.Linear(3, 2), MomentNorm(2, affine=False)), 0.0, 1.0)
    bnn = BayesianNetwork(model, likelihoods.Gaussian(1.0))
    guide = guides.MeanField(bnn, init_scale=0.3)
    x = torch.randn(20_000, 3)
    with torch.no_grad():
        local = bnn.output({name: q.structured() for name, q in guide.distributions().items()}, x)
        exact = bnn.output({name: q.moments() for name, q in guide.distributions().items()}, Moments(x))
    assert_mean(local, torch.zeros(2), COMPARISONS)
    assert_mean(local.square(), torch.ones(2), COMPARISONS, "variance")
    assert_equal_means(local.square(), exact.second_moment, COMPARISONS)


def test_flows_have_no_statistics_in_closed_form():
    bnn = bayesian()
    guide = guides.MNF(bnn, others="mean-field")
    data = torch.randn(20, 3), torch.randint(2, (20,))
    with pytest.raises(NoMomentsError, match=r"'network\.0\.weight' is a MultiplicativeWeight"):
        fit(bnn, guide, data, epochs=1, **FIT)
    fit(bnn, guides.MNF(bnn, others="mean-field", sampling="dense"), data, epochs=1, **FIT)


def test_networks_that_are_not_wrapped_are_refused():
    with pytest.raises(RuntimeError, match=r"wrap the network, moments.Normalized\(network, mean, variance\)"):
        network()(torch.randn(1, 1, 8, 8))
    with pytest.raises(ValueError, match="has no MomentNorm layer"):
        Normalized(nn.Linear(3, 2), 0.0, 1.0)
    with pytest.raises(ValueError, match="variances must be at least 0"):
        Normalized(network(), 0.0, -1.0)
    with pytest.raises(ValueError, match=r"MomentNorm\(4\) normalizes inputs \[N, 4, ...\], not \[1, 3\]"):
        Normalized(nn.Sequential(nn.Linear(2, 3), MomentNorm(4)), 0.0, 1.0)(torch.randn(5, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_features": 0}, "num_features must be a positive integer, not 0"),
        ({"num_features": True}, "num_features must be a positive integer"),
        ({"num_features": 2, "eps": -1.0}, "eps must be at least 0"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MomentNorm(**arguments)
    assert repr(MomentNorm(3)) == "MomentNorm(3, affine=True, eps=1e-05)"
