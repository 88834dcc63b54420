"""`propagate` and `per_layer`: the three modes, the network's modes, and wrong arguments."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnnzoo.moments import Moments, NoRuleError, per_layer, propagate, units
from tests.statistical import bound


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def test_the_mean_mode_is_the_ordinary_pass_in_eval_mode():
    net, x = network(), torch.randn(3, 4)
    found = propagate(net, x, 0.5, "ap1")
    assert found.certain
    assert torch.equal(found.loc, net.eval()(x))


def test_without_noise_moments_are_the_ordinary_pass():
    net, x = network(), torch.randn(3, 4)
    net[3].p = 0.0
    found = propagate(net, x)
    assert found.certain
    assert torch.equal(found.loc, net.eval()(x))


def test_dropout_is_on_and_batch_normalization_is_not():
    net, x = network(), torch.randn(3, 4)
    for mode in (True, False):
        net.train(mode)
        before = net[1].running_mean.clone()
        found = propagate(net, x)
        drawn = propagate(net, x, mode="sample", num_samples=5)
        assert all(part.training == mode for part in net.modules()), "modes are as before"
        assert torch.equal(net[1].running_mean, before)
        assert (drawn.variance > 0).any()
        hidden = net[:3].eval()(x)
        assert not found.certain
        # noise of dropout alone: the layer behind it is exact
        torch.testing.assert_close(found.variance, hidden.square() * (0.3 / 0.7) @ net[4].weight.square().T)
        torch.testing.assert_close(found.loc, net.eval()(x))


def test_sampled_moments_are_those_of_the_draws():
    net, x = network(), torch.randn(2, 4)
    torch.manual_seed(7)
    net.eval()
    net[3].train()
    draws = torch.stack([net(x + 0.5**0.5 * torch.randn_like(x)) for _ in range(50)])
    torch.manual_seed(7)
    found = propagate(net, x, 0.5, "sample", num_samples=50, seed=None)
    torch.testing.assert_close(found.loc, draws.mean(0))
    torch.testing.assert_close(found.variance, draws.var(0, correction=0))


def test_draws_depend_on_the_seed_alone():
    net, x = network(), torch.randn(2, 4)
    state = torch.random.get_rng_state()
    first, again, other = (propagate(net, x, 1.0, "sample", num_samples=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.loc, again.loc)
    assert not torch.equal(first.loc, other.loc)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("mode", ["ap1", "ap2", "sample"])
def test_layers_in_place_leave_the_input_and_the_records_alone(mode):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.4, inplace=True), nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    x = torch.randn(3, 4)
    before = x.clone()
    layers = per_layer(net, x, None, mode, num_samples=200)
    assert torch.equal(x, before)
    assert (layers["1"].loc < 0).any(), "before the rectifier"
    if mode == "sample":
        assert (layers["0"].loc - x).abs().max() < 6 * ((0.4 / 0.6) / 200) ** 0.5 * x.abs().max()
    else:
        torch.testing.assert_close(layers["0"].loc, x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU())
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.inner(self.act(x)) + x)


def test_layers_have_their_paths_and_count_their_calls():
    torch.manual_seed(0)
    net, x = nn.Sequential(Block(), nn.Linear(4, 2)), torch.randn(3, 4)
    layers = per_layer(net, x, 0.1)
    assert list(layers) == ["0.act", "0.inner.0", "0.inner.1", "0.act#2", "1"]
    assert list(per_layer(net, x, 0.1)) == list(layers), "every pass counts anew"
    assert list(per_layer(net, x, 0.1, "sample", num_samples=3)) == list(layers)
    final = propagate(net, x, 0.1)
    torch.testing.assert_close(layers["1"].variance, final.variance)
    torch.testing.assert_close(layers["0.act"].loc, F.relu(Moments(x, 0.1)).loc)
    sampled = per_layer(net, x, 0.1, "sample", num_samples=20)
    torch.testing.assert_close(sampled["1"].variance, propagate(net, x, 0.1, "sample", num_samples=20).variance)
    assert all(value.certain for value in per_layer(net, x, 0.1, "ap1").values())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_hooks_are_gone_after_an_error_and_every_part_is_in_its_own_mode():
    net = nn.Sequential(nn.Linear(4, 4), nn.LPPool1d(2, 2), nn.Dropout(), nn.Dropout())
    for frozen in (1, 2):
        net[frozen].eval()
    before = [part.training for part in net.modules()]
    with pytest.raises(NoRuleError, match=r"\(in '1', a LPPool1d\)"):
        per_layer(net, torch.randn(3, 4), 1.0)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert [part.training for part in net.modules()] == before


def test_sensitivities_of_every_layer_are_refused():
    with pytest.raises(ValueError, match="of one value"):
        per_layer(nn.Linear(2, 2), torch.zeros(1, 2), 0.1, covariance="sensitivity")


def test_it_is_differentiable():
    net = network().double()
    mean = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    variance = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)

    def both(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        result = net[:3].eval()(Moments(mean, variance))
        return result.loc, result.variance

    assert torch.autograd.gradcheck(both, (mean, variance))
    found = propagate(net, mean, variance)
    (found.loc + found.variance).sum().backward()
    for parameter in (mean, variance, *net.parameters()):
        assert parameter.grad.isfinite().all()


def test_stochastic_units_count_as_noise():
    net = nn.Sequential(nn.Linear(4, 3), units.LogisticBernoulli()).eval()
    x = torch.randn(2, 4)
    assert propagate(net, x, mode="ap1").loc.eq(net(x)).all()
    found = propagate(net, x)
    torch.testing.assert_close(found.variance, found.loc * (1 - found.loc))
    drawn = propagate(net, x, mode="sample", num_samples=10)
    torch.testing.assert_close(drawn.loc * 10, (drawn.loc * 10).round())
    drawn = propagate(net, x, mode="sample", num_samples=2000)
    assert ((drawn.loc - found.loc).abs() < bound(6) * (found.variance / 2000).sqrt()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "ap3"}, "mode must be one of 'ap1', 'ap2', 'sample', not 'ap3'"),
        ({"mean": [1.0]}, "mean must be a tensor, not list"),
        ({"mean": Moments(torch.zeros(3, 4))}, "mean must be a tensor, not Moments"),
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, not 0"),
        ({"num_samples": 2.5}, "num_samples must be an integer of at least 1, not 2.5"),
        ({"num_samples": True}, "num_samples must be an integer of at least 1, not True"),
        ({"variance": -0.1}, "variances must be at least 0; the least is -0.1"),
        ({"variance": torch.full((4,), float("nan"))}, "variances must be at least 0; the least is nan"),
        ({"variance": torch.ones(3)}, r"variance of shape \[3\] does not broadcast to the mean's \[3, 4\]"),
        ({"approximation": "rough"}, "approximation must be 'exact' or 'paper', not 'rough'"),
        ({"fallback": "guess"}, "fallback must be 'linearize', 'quadrature', 'sample' or None, not 'guess'"),
        ({"covariance": "some"}, "covariance must be one of 'diagonal', 'sensitivity', 'full', not 'some'"),
        ({"covariance": "full", "mode": "sample"}, "covariance='full' goes with mode='ap2'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    given = {"mean": torch.zeros(3, 4), "variance": 1.0, **arguments}
    with pytest.raises(ValueError, match=message):
        propagate(network(), **given)


def test_a_network_must_return_one_tensor():
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    for mode in ("ap1", "ap2", "sample"):
        with pytest.raises(TypeError, match="must return one tensor, not tuple"):
            propagate(Pair(), torch.zeros(2), 1.0, mode)
