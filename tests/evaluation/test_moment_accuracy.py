"""The measures of propagated moments against closed forms, hand computations and their own standard errors."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from statistical import bound
from torch import nn

from bnnzoo.evaluation import MomentReference, moment_accuracy, moment_reference, plot_moment_accuracy
from bnnzoo.moments import Moments, per_layer

COMPARISONS = 40  # of estimates with exact values, in this file


def linear(weight):
    layer = nn.Linear(len(weight[0]), len(weight), bias=False).double()
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    return layer


def moments(mean, variance):
    return Moments(torch.tensor(mean, dtype=torch.float64), torch.tensor(variance, dtype=torch.float64))


def known(layers, probs=None, num_samples=10**12):
    """A reference without an error: means and variances by layer, and those of the class probabilities."""
    blocks = [{name: moments(*given) for name, given in layers.items()}] * 10
    return MomentReference(blocks, [] if probs is None else [moments(*probs)] * 10, num_samples)


def of(table, name, layer="output"):
    return table[name].sel(layer=layer).item()


#: Gauss-Hermite nodes in three dimensions.
_POINTS, _MASS = np.polynomial.hermite_e.hermegauss(40)
GRID = np.stack(np.meshgrid(_POINTS, _POINTS, _POINTS), -1).reshape(-1, 3)
WEIGHTS = np.prod(np.stack(np.meshgrid(_MASS, _MASS, _MASS), -1).reshape(-1, 3), 1) / _MASS.sum() ** 3


class Identity(nn.Module):
    def forward(self, x):
        return x


def test_fully_correlated_units_that_are_added_have_half_the_variance():
    """Both hidden units are the input: the sum's variance is 4, of independent ones 2."""
    network = nn.Sequential(linear([[1.0], [1.0]]), linear([[1.0, 1.0]]))
    x = torch.tensor([[0.3], [-2.0]]).double()
    truth = known({"0": ([[0.3, 0.3], [-2.0, -2.0]], [[1.0, 1.0]] * 2), "output": ([[0.6], [-4.0]], [[4.0]] * 2)})
    table = moment_accuracy(network, x, 1.0, classes=False, reference=truth)
    assert of(table, "eps_sigma") == pytest.approx(1 / math.sqrt(2), rel=1e-6)
    assert of(table, "eps_sigma", "0") == pytest.approx(1, rel=1e-6)
    assert of(table, "eps_mu_ap2") == pytest.approx(0, abs=1e-6)
    drawn = moment_accuracy(network, x, 1.0, classes=False, num_samples=1000)
    # log σ* of S Gaussian draws has variance 1 / (2 S); the two inputs' are averaged
    assert abs(math.log(of(drawn, "eps_sigma") * math.sqrt(2))) < bound(COMPARISONS) / math.sqrt(4000)


def test_a_linear_network_has_exact_means_and_known_standard_deviations():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 5).double(), nn.Linear(5, 4).double()
    x, variance, draws = torch.randn(3, 6).double(), torch.rand(3, 6).double() + 0.1, 1000
    table = moment_accuracy(nn.Sequential(first, second), x, variance, num_samples=draws)
    true = variance @ (second.weight @ first.weight).square().T
    independent = variance @ first.weight.square().T @ second.weight.square().T
    expected = (independent / true).log().mean().div(2).exp().item()
    assert abs(expected - 1) > 0.05
    for layer, right in {"0": 1.0, "1": expected, "output": expected}.items():
        # of one unit; the mean over units varies less
        assert abs(math.log(of(table, "eps_sigma", layer) / right)) < bound(COMPARISONS) / math.sqrt(2 * draws)
        for way in ("ap1", "ap2"):
            # |error| / σ is half normal: mean √(2 / π S), variance (1 - 2/π) / S for one unit
            error = of(table, f"eps_mu_{way}", layer) - math.sqrt(2 / math.pi / draws)
            assert abs(error) < bound(COMPARISONS) * math.sqrt((1 - 2 / math.pi) / draws)
    assert table.eps_mu_floor.item() == pytest.approx(math.sqrt(2 / math.pi / draws))


def test_errors_are_averaged_before_they_are_divided_and_ratios_geometrically():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()
    truth = known({"output": ([[1.5, 2.0], [2.0, 4.0]], [[0.25, 0.0], [4.0, 1.0]])})
    table = moment_accuracy(Identity(), x, 1.0, classes=False, reference=truth, layers=["output"])
    # mean |μ - μ*| = 1.5 / 4, mean σ* = (0.5 + 0 + 2 + 1) / 4
    assert of(table, "eps_mu_ap1") == pytest.approx(1.5 / 3.5, rel=1e-6)
    assert of(table, "eps_mu_ap2") == pytest.approx(1.5 / 3.5, rel=1e-6)
    assert of(table, "eps_sigma") == pytest.approx((1 / 0.5 * 1 / 2.0 * 1 / 1.0) ** (1 / 3), rel=1e-6)
    assert of(table, "excluded") == 0.25
    assert of(table, "units") == 4


def test_the_ordinary_pass_is_what_ap1_measures():
    """ReLU of N(0, 1): the mean is 1/√(2π), the ordinary pass says 0; σ*² = 1/2 - 1/(2π)."""
    mean, variance = 1 / math.sqrt(2 * math.pi), 0.5 - 0.5 / math.pi
    truth = known({"output": ([[mean, mean]], [[variance, variance]])})
    x = torch.zeros(1, 2).double()
    table = moment_accuracy(nn.ReLU(), x, 1.0, classes=False, reference=truth)
    assert of(table, "eps_mu_ap1") == pytest.approx(mean / math.sqrt(variance), rel=1e-6)
    assert of(table, "eps_mu_ap2") == pytest.approx(0, abs=1e-5)
    assert of(table, "eps_sigma") == pytest.approx(1, rel=1e-5)


def test_divergences_of_class_probabilities_by_hand():
    x = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 0.0]]).double()
    probs = np.array([[0.7, 0.1, 0.2], [0.3, 0.7, 0.0]])
    truth = known(
        {"output": (x.tolist(), [[1.0] * 3] * 2)}, (probs.tolist(), [[0.02, 0.03, 0.05], [0.1, 0.1, 0.0]]), 50
    )
    variance = np.array([[0.5, 2.0, 1.0], [3.0, 0.1, 0.0]])
    table = moment_accuracy(Identity(), x, torch.tensor(variance), reference=truth, layers={"F": "output"})
    logits = x.numpy()

    def divergence(log_q):
        return special.rel_entr(probs, np.exp(log_q)).sum(1).mean()

    simplified = logits / np.sqrt(1 + 3 * variance / np.pi**2)
    assert of(table, "kl_ap1", "F") == pytest.approx(divergence(special.log_softmax(logits, 1)), rel=1e-9)
    assert of(table, "kl_simplified", "F") == pytest.approx(divergence(special.log_softmax(simplified, 1)), rel=1e-9)
    logistic = np.array(
        [
            [
                -np.log(
                    sum(np.exp((m[k] - m[y]) / np.sqrt(1 + 3 * (v[k] + v[y]) / np.pi**2) * (k != y)) for k in range(3))
                )
                for y in range(3)
            ]
            for m, v in zip(logits, variance, strict=True)
        ]
    )
    mixed = special.softmax(logits[:, None] + np.sqrt(variance)[:, None] * GRID, -1)
    exact = np.log((mixed * WEIGHTS[:, None]).sum(1))
    assert of(table, "kl_exact", "F") == pytest.approx(divergence(exact), abs=1e-5)
    assert of(table, "kl_logistic", "F") == pytest.approx(divergence(special.log_softmax(logistic, 1)), rel=1e-9)
    spread = np.array([0.02 / 0.7 + 0.03 / 0.1 + 0.05 / 0.2, 0.1 / 0.3 + 0.1 / 0.7])
    # variances are those of 10 · 5 draws, unbiased
    assert of(table, "kl_floor", "F") == pytest.approx(spread.mean() * 50 / 49 / (2 * 50), rel=1e-9)


def test_class_probabilities_are_the_mean_of_the_softmax():
    """Not the softmax of the mean: of two logits (m, 0) with variance v, E sigmoid(N(m, 2 v)), by quadrature."""
    m, v, draws = 2.0, 3.0, 2000
    x = torch.tensor([[m, 0.0]]).double()
    _, probs = moment_reference(Identity(), x, v, num_samples=draws).without()
    density = stats.norm(m, math.sqrt(2 * v)).pdf
    mean = integrate.quad(lambda t: special.expit(t) * density(t), -30, 30)[0]
    square = integrate.quad(lambda t: special.expit(t) ** 2 * density(t), -30, 30)[0]
    error = math.sqrt((square - mean**2) / draws)
    assert abs(probs.loc[0, 0].item() - mean) < bound(COMPARISONS) * error
    assert abs(mean - special.expit(m)) > 20 * error
    assert probs.variance[0, 0].item() == pytest.approx(square - mean**2, rel=0.3)


def test_the_divergence_of_exact_probabilities_is_the_floor():
    """Of exact logits' probabilities (the draws' own expectation, by quadrature) only the draws' error is left."""
    draws = 200
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).double()
    reference = moment_reference(Identity(), x, 0.5, num_samples=draws)
    points, weights = np.polynomial.hermite_e.hermegauss(40)
    margin = (x[:, :1] - x[:, 1:]).numpy() + points  # variance 2 · 0.5
    p = special.expit(margin) @ (weights / weights.sum())
    table = moment_accuracy(Identity(), x, 0.5, reference=reference)
    drawn = reference.without()[1].loc[:, 0].numpy()
    each = special.rel_entr(drawn, p) + special.rel_entr(1 - drawn, 1 - p)
    assert abs(each.mean() - of(table, "kl_floor")) < bound(COMPARISONS) * each.std() / math.sqrt(400)
    assert each.mean() < 5e-3


def test_standard_errors_are_the_spread_over_seeds():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x, runs = torch.randn(2, 3).double(), 30
    kinds = ["simplified"]
    tables = [moment_accuracy(network, x, 0.5, num_samples=50, kinds=kinds, seed=seed) for seed in range(runs)]
    for name in ("eps_mu_ap1", "eps_sigma", "kl_ap1", "kl_simplified"):
        values = np.array([of(table, name) for table in tables])
        squares = np.array([of(table, f"{name}_se") ** 2 for table in tables])
        # a jackknife of ten parts has about nine degrees of freedom, and is too large rather than too small
        z = math.log(values.var(ddof=1) / squares.mean()) / math.sqrt(2 / (runs - 1) + 2 / (9 * runs))
        assert -bound(COMPARISONS) - 1 < z < bound(COMPARISONS), name


def test_parts_of_the_draws_pool_to_all_of_them():
    draws = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0)).double() + 5
    parts = [{"a": Moments(part.mean(0), part.var(0, correction=0))} for part in draws.split(5)]
    reference = MomentReference(parts, [], 50)
    for block in (None, 0, 9):
        kept = draws if block is None else torch.cat([*draws.split(5)[:block], *draws.split(5)[block + 1 :]])
        pooled = reference.without(block)[0]["a"]
        torch.testing.assert_close(pooled.loc, kept.mean(0))
        torch.testing.assert_close(pooled.variance, kept.var(0))


def test_layers_without_noise_are_not_measured():
    """Also in single precision, where ten times a tenth of a mean need not be that mean."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 50), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(50, 2))
    table = moment_accuracy(network, torch.randn(20, 3), num_samples=50)
    for layer in ("0", "1"):
        assert of(table, "excluded", layer) == 1
        for name in ("eps_mu_ap1", "eps_mu_ap2", "eps_sigma"):
            assert math.isnan(of(table, name, layer))
    assert of(table, "excluded", "3") == 0
    # a ReLU's zeros are not random under dropout
    zeros = (network[:2](torch.randn(20, 3)) == 0).double().mean().item()
    assert 0 < of(table, "excluded", "2") < 1.5 * zeros


def test_layers_that_the_next_one_overwrites_are_measured_before():
    torch.manual_seed(0)
    layers = nn.Linear(3, 50), nn.Linear(50, 2)
    x = torch.randn(4, 3)
    networks = [nn.Sequential(layers[0], nn.ReLU(inplace=inplace), layers[1]) for inplace in (False, True)]
    for mode in ("ap1", "ap2", "sample"):
        for variance in (None, 0.3):
            plain, overwritten = (per_layer(n, x, variance, mode, num_samples=3) for n in networks)
            for name, expected in plain.items():
                torch.testing.assert_close(overwritten[name].loc, expected.loc)
                torch.testing.assert_close(overwritten[name].variance, expected.variance)


def test_layers_are_chosen_and_named():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    reference = moment_reference(network, x, 0.1, num_samples=40)
    assert list(reference.blocks[0]) == ["0", "1", "2", "output"]
    whole = moment_accuracy(network, x, 0.1, reference=reference)
    named = moment_accuracy(network, x, 0.1, reference=reference, layers={"F": "output", "C": "0", "again": "0"})
    assert list(named.layer.values) == ["F", "C", "again"]
    assert list(named.module.values) == ["output", "0", "0"]
    for name in ("eps_mu_ap1", "eps_mu_ap2", "eps_sigma", "eps_sigma_se", "units", "kl_logistic"):
        expected = [of(whole, name), of(whole, name, "0"), of(whole, name, "0")]
        np.testing.assert_array_equal(named[name].values, expected)
    assert list(moment_accuracy(network, x, 0.1, num_samples=20, layers=["1"]).layer.values) == ["1"]
    frame = whole.to_dataframe()
    assert list(frame.index) == list(whole.layer.values)
    assert frame.loc["2", "eps_sigma"] == of(whole, "eps_sigma", "2")
    assert {whole[name].attrs["units"] for name in whole} == {"1", "nat"}
    assert (whole.num_samples, whole.inputs) == (40, 5)


def test_seeds_fix_the_draws_and_the_network_stays_as_it_was():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    x = torch.randn(5, 3)
    state = torch.get_rng_state()
    one, same, other = (moment_accuracy(network, x, 0.1, num_samples=20, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert one.identical(same)
    assert of(one, "eps_sigma") != of(other, "eps_sigma")
    assert network.training
    assert network[1].training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    drawn = moment_reference(network, x, 0.1, num_samples=20, seed=3)
    assert moment_accuracy(network, x, 0.1, reference=drawn).identical(one)


def test_any_single_layer_is_a_network():
    table = moment_accuracy(nn.Linear(3, 2), torch.zeros(4, 3), 1.0, num_samples=20)
    assert list(table.layer.values) == ["output"]


def test_images_of_labels_have_classes_along_dimension_1():
    network = nn.Conv2d(1, 3, 1)
    table = moment_accuracy(network, torch.zeros(2, 1, 4, 4), 1e-10, num_samples=20, kinds=["logistic"])
    assert "kl_simplified" not in table
    assert 0 <= of(table, "kl_ap1") < 1e-8
    assert 0 <= of(table, "kl_logistic") < 1e-8


def test_plots_of_one_way_and_of_several():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    table = moment_accuracy(network, torch.randn(5, 3), 0.1, num_samples=20)
    figure = plot_moment_accuracy({"AP2": table, "other": table}, title="two")
    left, right = figure.axes
    assert [text.get_text() for text in left.get_xticklabels()] == ["0", "1", "2", "output"]
    assert {text.get_text() for text in left.get_legend().get_texts()} >= {"AP1", "AP2", "other"}
    drawn = [line.get_ydata() for line in right.lines]
    assert any(np.array_equal(line, table.eps_sigma.values) for line in drawn)
    assert any(np.array_equal(line.get_ydata(), table.eps_mu_ap1.values) for line in left.lines)
    assert len(plot_moment_accuracy(table).axes) == 2
    with pytest.raises(ValueError, match="given: none"):
        plot_moment_accuracy({})
    with pytest.raises(ValueError, match=r"the same layers: 'b' has .*'F'"):
        plot_moment_accuracy({"a": table, "b": table.assign_coords(layer=["F", "1", "2", "3"])})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 19}, "num_samples must be a multiple of 10, at least 20, not 19"),
        ({"num_samples": 10}, "num_samples must be a multiple of 10, at least 20, not 10"),
        ({"num_samples": 20.0}, "not 20.0"),
        ({"layers": ["3"]}, "layers: no layer '3'; there are 0, 1, output"),
        ({"layers": {"F": "fc"}}, "layers: no layer 'fc'"),
        ({"layers": "0"}, "layers must be a list of module paths, or a mapping to them, not '0'"),
        ({"layers": []}, "layers must be a list"),
        ({"variance": -1.0}, "variances must be at least 0"),
        ({"kinds": "exact"}, "kinds must be a list of 'normal', .*, not 'exact'"),
        ({"kinds": ["exact", "softmax"]}, "kinds must be a list of"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=message):
        moment_accuracy(network, torch.zeros(2, 3), **{"variance": 1.0, "num_samples": 20, **arguments})


def test_outputs_that_are_no_classes_are_refused():
    with pytest.raises(
        ValueError, match=r"outputs of shape \[2, 1\] are no logits of several classes .* classes=False"
    ):
        moment_accuracy(nn.Linear(3, 1), torch.zeros(2, 3), 1.0)
    table = moment_accuracy(nn.Linear(3, 1), torch.zeros(2, 3), 1.0, classes=False, num_samples=20)
    assert "kl_ap1" not in table


def test_a_reference_of_another_network_is_refused():
    x = torch.zeros(2, 3)
    reference = moment_reference(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), x, 1.0, num_samples=20)
    with pytest.raises(ValueError, match=r"a layer '0' of shape \[2, 4\], and in the network it is \[2, 5\]"):
        moment_accuracy(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), x, 1.0, reference=reference)
    with pytest.raises(ValueError, match=r"a layer '0' of shape \[2, 4\], and the network none"):
        moment_accuracy(nn.Linear(3, 2), x, 1.0, reference=reference)
    with pytest.raises(ValueError, match="no layer 'fc'; there are 0, 1, output"):
        moment_accuracy(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), x, 1.0, reference=reference, layers=["fc"])
