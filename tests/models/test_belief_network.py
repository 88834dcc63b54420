"""Sigmoid belief networks: exact marginals against brute force and draws, and what propagation makes of them."""

import itertools

import pytest
import torch

from bnnzoo import models
from bnnzoo.moments import propagate
from tests.statistical import assert_mean


def network(*sizes, scale=1.0, **settings):
    result = models.SigmoidBeliefNetwork(sizes, **settings)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.normal_(0, scale)
    return result


def binary(size):
    return [torch.tensor(state).float() for state in itertools.product((0, 1), repeat=size)]


def test_marginals_are_those_of_the_joint_distribution():
    net = network(2, 3, 2, 1)
    x = torch.tensor([[0.3, 0.8], [1.0, 0.0]])
    first, second, third = (net.layers[i] for i in (1, 3, 5))

    def chance(state, p):
        return (p * state + (1 - p) * (1 - state)).prod()

    for row, p in enumerate(x):
        sums = [torch.zeros(2), torch.zeros(3), torch.zeros(2), torch.zeros(1)]
        for a, b, c, d in itertools.product(*(binary(size) for size in (2, 3, 2, 1))):
            joint = chance(a, p) * chance(b, first(a).sigmoid()) * chance(c, second(b).sigmoid())
            joint = (joint * chance(d, third(c).sigmoid())).detach()
            sums = [total + joint * state for total, state in zip(sums, (a, b, c, d), strict=True)]
        for found, expected in zip(net.marginals(x), sums, strict=True):
            torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-6)


def test_marginals_are_the_frequencies_of_draws():
    net = network(4, 5, 3, scale=2.0)
    p = torch.rand(1, 4)
    assert net.training
    draws = net(p.expand(100_000, 4))
    assert ((draws == 0) | (draws == 1)).all()
    assert_mean(draws, net.marginals(p)[-1][0], 3)
    sampled = propagate(net, p, mode="sample", num_samples=200)
    torch.testing.assert_close(sampled.variance, sampled.loc * (1 - sampled.loc))


def test_observed_inputs_are_certain():
    net = network(3, 2)
    x = torch.tensor([[1.0, 0.0, 1.0]])
    expected = net.layers[1](x).sigmoid()
    for found in (net.marginals(x)[-1], propagate(net, x).loc, propagate(net, x, mode="ap1").loc, net.eval()(x)):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sizes", [(10, 10, 10), (5, 5, 5, 5)])
def test_ap2_is_nearer_to_the_marginals_than_ap1(sizes):
    ap1, ap2 = [], {None: [], "normal": [], "logistic": [], "pea": []}
    for seed in range(5):
        torch.manual_seed(seed)
        net = network(*sizes, scale=2.0)
        x = torch.rand(8, sizes[0])
        exact = net.marginals(x)[-1]
        ap1.append((propagate(net, x, mode="ap1").loc - exact).abs().mean().item())
        for kind, errors in ap2.items():
            for unit in net.layers[2::2]:
                unit.approximation = kind
            errors.append((propagate(net, x).loc - exact).abs().mean().item())
    for errors in ap2.values():
        assert sum(errors) < 0.5 * sum(ap1)


def test_marginals_are_differentiable():
    net = network(3, 3, 2)
    torch.autograd.gradcheck(lambda p: net.marginals(p)[-1], torch.rand(2, 3, dtype=torch.float64).requires_grad_())
    net.marginals(torch.rand(2, 3))[-1].sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_arguments_and_attributes():
    net = models.SigmoidBeliefNetwork([4, 3], approximation="normal")
    assert net.sizes == (4, 3)
    assert net.layers[2].approximation == net.approximation == "normal"
    assert list(net.state_dict()) == ["layers.1.weight", "layers.1.bias"]
    with pytest.raises(ValueError, match=r"sizes must be of two layers at least; given: \(4,\)"):
        models.SigmoidBeliefNetwork((4,))
    with pytest.raises(ValueError, match=r"sizes\[1\] must be a whole number of at least 1; given: 0"):
        models.SigmoidBeliefNetwork((4, 0))
    with pytest.raises(ValueError, match="approximation must be one of 'exact', 'normal', 'logistic', 'pea' or None"):
        models.SigmoidBeliefNetwork((4, 3), approximation="ap2")


def test_what_is_too_large_to_enumerate_is_refused():
    with pytest.raises(ValueError, match=r"layers of 20 and 20 units have 2\^40 pairs of states; at most 2\^24"):
        network(20, 20, 3).marginals(torch.rand(1, 20))
    with pytest.raises(ValueError, match=r"a layer of 30 units has 2\^30 states"):
        network(30, 3).marginals(torch.rand(1, 30))
    assert network(4, 3, 40).marginals(torch.rand(1, 4))[-1].shape == (1, 40)
    with pytest.raises(ValueError, match=r"x must hold probabilities, \[N, 4\]; given: \[1, 4\] from 2 to 2"):
        network(4, 3).marginals(torch.full((1, 4), 2.0))
