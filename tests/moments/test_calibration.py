"""Factors on propagated standard deviations: their estimate, where they apply, and that they stay with the network."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from statistical import bound
from torch import nn

from bnnzoo import BayesianNetwork, likelihoods
from bnnzoo.moments import Moments, calibrate, load_calibration, per_layer, propagate, uncalibrate
from bnnzoo.moments.calibration import FACTOR, NOISE, _Halves, log_ratio
from bnnzoo.moments.propagation import noise

COMPARISONS = 60


def correlated(width: int = 60) -> nn.Sequential:
    """Few noisy inputs, many units, weights of one sign: independence is far from the truth."""
    torch.manual_seed(1)
    network = nn.Sequential(
        *(nn.Linear(3, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)),
        *(nn.Dropout(0.1), nn.Linear(width, 2)),
    )
    with torch.no_grad():
        network[2].weight.abs_()
        network[5].weight.abs_()
    return network


def estimates(truth: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Two independent unbiased estimates of Gaussian variances, each of `count` draws."""
    return [(truth.sqrt() * torch.randn(count, len(truth))).var(0) for _ in range(2)]


def true_errors(network, x, variance, draws=400):
    """Geometric means of σ / σ*, by enough draws to take logarithms of."""
    truth = per_layer(network, x, variance, mode="sample", num_samples=draws, seed=5)
    found = per_layer(network, x, variance)
    return {
        name: (value.scale.log() - truth[name].scale.log()).mean().exp().item()
        for name, value in found.items()
        if not value.certain
    }


def test_a_failed_calibration_leaves_the_former_one():
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    calibrate(network, torch.randn(20, 3), 0.1)
    factors = {name: value for name, value in network.state_dict().items() if "moment" in name}
    with pytest.raises(RuntimeError):
        calibrate(network, torch.randn(20, 4), 0.1)
    assert {name for name in network.state_dict() if "moment" in name} == set(factors) != set()


def test_few_draws_give_the_mean_logarithm_of_log_normal_ratios():
    variance = torch.rand(4000) ** 4
    log = 0.7 * torch.randn(4000) + 0.3
    runs = torch.stack([log_ratio(*estimates(variance * log.exp(), 8), variance) for _ in range(60)])
    # the ratios' spread is estimated from the 80 elements of a bin
    error = runs.mean() - log.mean()
    assert abs(error) < bound(COMPARISONS) * runs.std() / math.sqrt(60) + 0.025
    # where the logarithm of each estimate would be taken, 8 draws alone would make it lower by
    assert (torch.digamma(torch.tensor(3.5)) - math.log(3.5)).item() < -0.1


def test_units_that_rarely_vary_are_no_matter():
    p = 0.04 * torch.rand(20_000) + 0.01
    halves = [(torch.rand(15, 20_000) < p).float().var(0) for _ in range(2)]
    assert (halves[0] == 0).float().mean() > 0.6
    ratios = halves[0] / (p * (1 - p))
    assert abs(log_ratio(*halves, p * (1 - p))) < bound(COMPARISONS) * ratios.std() / math.sqrt(40_000)


def test_elements_without_variance_count_for_nothing():
    variance = torch.rand(500) + 0.1
    one, other = estimates(2 * variance, 30)
    expected = log_ratio(one, other, variance)
    padded = [torch.cat([value, torch.full((500,), fill)]) for value, fill in ((one, 3.0), (other, 1.0))]
    zeros = torch.cat([variance, torch.zeros(500)])
    assert log_ratio(*padded, zeros).item() == pytest.approx(expected.item(), abs=0.02)
    assert log_ratio(one, other, torch.zeros(500)) == 0
    assert log_ratio(torch.zeros(500), torch.zeros(500), variance) == 0


def test_halves_of_the_draws_are_unbiased_and_apart():
    draws, halves = 1000 + torch.randn(10, 4), _Halves()
    for draw in draws:
        halves.add(draw)
    torch.testing.assert_close(
        halves.variances(), torch.stack([draws[::2].var(0), draws[1::2].var(0)]), rtol=1e-3, atol=0
    )


def test_factors_of_a_linear_chain_are_the_exact_ratios():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 20), nn.Linear(20, 15), nn.Linear(15, 4)).double()
    x, spread = torch.randn(200, 3, dtype=torch.float64), 0.3
    draws = 100
    calibration = calibrate(network, x, spread, per="unit", num_samples=draws)
    assert set(calibration.factors) == {"0", "1", "2"}
    covariance, variance = spread * torch.eye(3, dtype=torch.float64), torch.full((3,), spread, dtype=torch.float64)
    for layer in network:
        covariance = layer.weight @ covariance @ layer.weight.T
        variance = layer.weight.square() @ variance
        # earlier layers are right by then
        expected = (covariance.diagonal() / variance).sqrt()
        error = layer.moment_factor / expected - 1
        # of the mean of 200 logarithms of standard deviations from 100 draws; bins of 20 leave a bias of about 1/(20 S)
        assert error.abs().max() < bound(COMPARISONS) / math.sqrt(2 * draws * 200) + 5e-3
        variance = covariance.diagonal()
    errors = true_errors(network, x, spread)
    assert all(abs(value - 1) < 0.01 for value in errors.values())


@pytest.mark.parametrize("per", ["layer", "channel", "unit"])
def test_standard_deviations_are_right_on_other_inputs(per):
    network = correlated()
    x = torch.randn(200, 3)
    before = true_errors(network, x[100:], 0.1)
    calibration = calibrate(network, x[:100], 0.1, per=per, check=x[100:])
    after = true_errors(network, x[100:], 0.1)
    assert min(before.values()) < 0.4
    assert all(0.93 < value < 1.07 for value in after.values())
    for row in calibration.layers:
        assert row.before == pytest.approx(before[row.layer], rel=0.05)
        assert row.after == pytest.approx(after[row.layer], rel=0.05)
    assert calibration.num_samples == 30
    shapes = {"layer": [], "channel": [60], "unit": [60]}
    assert list(network[0].moment_factor.shape) == shapes[per]


def test_channels_of_a_convolution_have_factors_of_their_own():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3), nn.Conv2d(3, 2, 3))
    calibrate(network, torch.randn(20, 1, 9, 9), 0.2, per="channel", num_samples=20)
    assert network[2].moment_factor.shape == (2, 1, 1)
    calibrate(network, torch.randn(20, 1, 9, 9), 0.2, per="unit", num_samples=20)
    assert network[2].moment_factor.shape == (2, 3, 3)


def test_dropout_alone_is_noise_enough():
    network = correlated()
    calibration = calibrate(network, torch.randn(100, 3))
    assert list(calibration.factors) == ["4", "5"]
    assert network.get_buffer(NOISE) == 0


def test_tensors_and_other_ways_of_propagating_pass_as_they_are():
    network = correlated().eval()
    x = torch.randn(20, 3)
    plain, full = network(x), propagate(network, x, 0.1, covariance="full")
    sensitivity = propagate(network, x, 0.1, covariance="sensitivity")
    calibrate(network, x, 0.1)
    assert torch.equal(network(x), plain)
    assert torch.equal(propagate(network, x, mode="ap1").loc, plain)
    assert torch.equal(propagate(network, x, 0.1, covariance="full").variance, full.variance)
    assert torch.equal(propagate(network, x, 0.1, covariance="sensitivity").variance, sensitivity.variance)


def test_factors_go_where_the_network_goes(tmp_path):
    network = correlated()
    x = torch.randn(50, 3)
    calibrate(network, x, 0.1)
    expected = propagate(network, x, 0.1).variance
    assert torch.equal(propagate(copy.deepcopy(network), x, 0.1).variance, expected)
    whole = io.BytesIO()
    torch.save(network, whole)
    whole.seek(0)
    assert torch.equal(propagate(torch.load(whole, weights_only=False), x, 0.1).variance, expected)
    torch.save(network.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state")
    fresh = correlated()
    assert not torch.allclose(propagate(fresh, x, 0.1).variance, expected, rtol=0.1)
    with pytest.raises(RuntimeError, match=FACTOR):
        fresh.load_state_dict(state)
    load_calibration(fresh, state)
    fresh.load_state_dict(state)
    assert torch.equal(propagate(fresh, x, 0.1).variance, expected)
    assert fresh.get_buffer(NOISE) == pytest.approx(0.1)
    double = propagate(copy.deepcopy(network).double(), x.double(), 0.1).variance
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=0)
    bnn = BayesianNetwork(network, likelihoods.Gaussian(1.0))
    values = {name: value.detach() for name, value in network.named_parameters()}
    with noise(bnn.network, True):
        assert torch.equal(bnn.output(values, Moments(x, 0.1)).variance, expected)


def test_dropping_them_leaves_the_network_as_it_was():
    network = correlated()
    x = torch.randn(50, 3)
    expected, names = propagate(network, x, 0.1).variance, list(network.state_dict())
    for _ in range(2):
        calibrate(network, x, 0.1)
    assert sum(len(module._forward_hooks) for module in network.modules()) == 6
    again = calibrate(network, x, 0.1)  # the former ones do not count
    assert again.factors["0"] == pytest.approx(1.0, abs=0.05)
    uncalibrate(network)
    assert list(network.state_dict()) == names
    assert torch.equal(propagate(network, x, 0.1).variance, expected)
    assert not any(module._forward_hooks for module in network.modules())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.LeakyReLU(0.2)

    def forward(self, x):
        x = x + self.second(self.act(self.first(x)))
        return self.act(x)


def test_a_layer_called_twice_has_no_factor_and_its_block_has():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), Block(), nn.Flatten(), nn.Linear(8, 8))
    x = torch.randn(300, 3)
    calibration = calibrate(network, x[:150], 0.2, check=x[150:])
    assert list(calibration.factors) == ["0", "1.first", "1.second", "1", "3"]  # flattening does nothing here
    rows = {row.layer: row for row in calibration.layers}
    assert rows["1.act"].factor is None
    # and it is right after the block
    truth = propagate(network[:2], x[150:], 0.2, mode="sample", num_samples=1000)
    ratio = (propagate(network[:2], x[150:], 0.2).scale / truth.scale)[truth.variance > 0]
    assert ratio[ratio > 0].log().mean().exp().item() == pytest.approx(1.0, abs=0.05)


def test_activations_in_place_have_factors_of_their_own():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.2, inplace=True), nn.Dropout(0.1), nn.Linear(8, 8))
    x = torch.randn(100, 3)
    found = calibrate(network, x, 0.2)
    network[1].inplace = False
    expected = calibrate(network, x, 0.2)
    assert list(found.factors) == ["0", "1", "2", "3"]
    assert found.factors == pytest.approx(expected.factors, rel=1e-4)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 40)

    def forward(self, x):
        return F.relu(self.layer(x)).mean(1, keepdim=True)


def test_what_a_network_does_between_its_layers_is_corrected_at_its_end():
    torch.manual_seed(0)
    network = Functional()
    calibration = calibrate(network, torch.randn(200, 3), 0.1)
    assert list(calibration.factors) == ["layer", ""]
    assert calibration.factors[""] > 1.5
    assert "| output |" in str(calibration)


def test_factors_hold_under_vmap():
    network = correlated()
    x = torch.randn(20, 3)
    calibrate(network, x, 0.1)
    stacked = {name: torch.stack([value, value]) for name, value in network.state_dict().items()}
    stacked["0.moment_factor"][1] *= 2

    def run(state):
        output = torch.func.functional_call(network.eval(), state, (Moments(x, 0.1),))
        return output.loc, output.variance

    _, variances = torch.func.vmap(run)(stacked)
    torch.testing.assert_close(variances[0], run(network.state_dict())[1])
    assert (variances[1] > 1.5 * variances[0]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": "images"}, "x must be a tensor of inputs"),
        ({"x": torch.zeros(3)}, "x must be a tensor of inputs"),
        ({"check": torch.zeros(0, 3)}, "check must be a tensor of inputs"),
        ({"per": "weight"}, "per must be one of 'layer', 'channel', 'unit'"),
        ({"num_samples": 7}, "num_samples must be an even number of at least 4, not 7"),
        ({"num_samples": 2}, "num_samples must be an even number"),
        ({"variance": -1.0}, "variances must be at least 0; the least is -1"),
        ({"variance": torch.ones(4)}, "does not broadcast to inputs"),
        ({"variance": None}, "nothing in the network is random"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        calibrate(nn.Linear(3, 2), **({"x": torch.randn(5, 3), "variance": 0.1} | change))


def test_a_state_without_factors_is_refused():
    network = correlated()
    with pytest.raises(ValueError, match="holds no factors"):
        load_calibration(network, network.state_dict())
    calibrate(network, torch.randn(20, 3), 0.1)
    with pytest.raises(ValueError, match="no module '3'"):
        load_calibration(network[:3], network.state_dict())
