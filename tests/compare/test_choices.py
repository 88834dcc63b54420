"""What the cross-validation chooses, against brute force; stacks and their sizes."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from bnnzoo.compare.cell import Cell, Choice, cut
from bnnzoo.compare.protocol import Protocol, common_rows
from bnnzoo.compare.stages import _curve, _fitted, _protocol, best_by, best_by_pll, run, training_of
from bnnzoo.data import Dataset
from tests.compare.small import SETTINGS, classes, dropout, line, point


def cell(method, data=None, **settings):
    return Cell(line() if data is None else data, method, Protocol(**{**SETTINGS, **settings}), None)


def refitted(stage):
    """Held-out errors of each fit of a stage, by the posteriors themselves."""
    posteriors, held_out = _fitted(stage)
    found = []
    for posterior, test in zip(posteriors, held_out, strict=True):
        prediction = posterior.predict(test.x, stage.protocol.cv_draws, stage.protocol.seed)
        found.append((test.y - prediction.parameters["loc"][0]).double())
    return found


@pytest.fixture(scope="module")
def validated():
    mine = cell(dropout(grid={"rate": (0.5, 0.05), "weight_decay": (1e-1, 1e-4), "batch_size": (8, 16)}), max_chains=7)
    stages = mine.validation()
    return mine, stages, [run(stage) for stage in stages]


def test_every_split_fold_and_value_is_fitted_once(validated):
    _, stages, _ = validated
    fits = [(s.call["batch_size"], f.split, f.fold, *f.values.values()) for s in stages for f in s.fits]
    assert len(set(fits)) == len(fits) == 2 * 2 * 2 * 4
    assert max(stage.num_fits for stage in stages) <= 7
    assert [stage.number for stage in stages] == list(range(len(stages)))


def test_the_value_with_the_least_squared_error_over_folds_is_chosen(validated):
    mine, stages, results = validated
    squares, errors = {}, {}
    for stage in stages:
        for fit, error in zip(stage.fits, refitted(stage), strict=True):
            key = (fit.split, *{**stage.call, **fit.values}.items())
            squares.setdefault(key, []).append(error.mean(0).square().mean().item())
            errors.setdefault(key, []).append(error)
    for split, choice in enumerate(mine.choices(results)):
        own = {key: np.mean(values) for key, values in squares.items() if key[0] == split}
        best = min(own, key=own.get)
        assert dict(best[1:]) == {**choice.call, **choice.values}
        assert choice.loss == pytest.approx(math.sqrt(own[best]), rel=1e-5)
        pooled = torch.cat(errors[best], 1).numpy()
        assert choice.noise[0] == pytest.approx(least_crps(pooled), rel=1e-3)


def least_crps(errors):
    """The best noise scale by a search of its own, CRPS of Gaussians in closed form."""

    def crps(log_scale):
        std = np.sqrt(np.exp(2 * log_scale) + errors.var(0))
        z = errors.mean(0) / std
        return np.mean(std * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi)))

    return math.exp(optimize.minimize_scalar(crps, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8}).x)


def test_noise_by_pll_is_that_of_the_mixture():
    mine = cell(dropout(grid={"rate": (0.2,), "weight_decay": (1e-3,)}), noise_by="pll")
    stages = mine.validation()
    choices = mine.choices([run(stage) for stage in stages])
    for split, choice in enumerate(choices):
        found = [
            error
            for stage in stages
            for fit, error in zip(stage.fits, refitted(stage), strict=True)
            if fit.split == split
        ]
        errors = torch.cat(found, 1).numpy()

        def loss(log_scale, errors=errors):
            return -np.mean(np.logaddexp.reduce(stats.norm.logpdf(errors, scale=math.exp(log_scale)), 0))

        best = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8}).x
        assert choice.noise == choice.noise_pll
        assert choice.noise[0] == pytest.approx(math.exp(best), rel=2e-3)


def test_noise_by_pll_of_one_draw_is_the_root_mean_square():
    errors = [torch.randn(1, 40, 2, dtype=torch.float64) * torch.tensor([1.0, 9.0]) for _ in range(3)]
    units = torch.tensor([1.5, 5.0], dtype=torch.float64)
    expected = torch.cat(errors, 1).square().mean((0, 1)).sqrt()
    found = best_by_pll([_curve(each, units) for each in errors], units)
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    np.testing.assert_allclose(best_by(errors, "pll"), expected, rtol=1e-4)


def test_the_baseline_is_the_network_without_dropout():
    stage = cell(dropout()).validation()[0]
    posteriors, held_out = _fitted(stage)
    plain = run(stage)["plain"]
    for posterior, test, errors in zip(posteriors, held_out, plain, strict=True):
        # The weights without masks, by hand.
        parameters, _ = posterior.state()
        values = posterior.guide.layout.split(parameters["guide.loc"][0])
        units = posterior.standardization
        x = units.x(test.x)
        with torch.no_grad():
            f = posterior.bnn.eval().output(dict(zip(posterior.guide.layout.names, values, strict=True)), x)
        loc = f[:, 0] * units.y_scale + units.y_loc
        torch.testing.assert_close(errors[0, :, 0].float(), test.y - loc, rtol=1e-4, atol=1e-5)


def test_classes_are_chosen_by_log_probability():
    mine = cell(point(), classes())
    stages = mine.validation()
    results = [run(stage) for stage in stages]
    losses = {}
    for stage, result in zip(stages, results, strict=True):
        posteriors, held_out = _fitted(stage)
        for fit, posterior, test, loss in zip(stage.fits, posteriors, held_out, result["loss"], strict=True):
            probs = posterior.predict(test.x, 1).probs
            own = -probs[torch.arange(len(test)), test.y].log().mean().item()
            assert loss.item() == pytest.approx(own, rel=1e-4)
            losses.setdefault((fit.split, fit.values["weight_decay"]), []).append(own)
    for split, choice in enumerate(mine.choices(results)):
        best = min((np.mean(v), key[1]) for key, v in losses.items() if key[0] == split)
        assert choice.values["weight_decay"] == best[1]
        assert choice.noise == ()


def test_classes_without_a_grid_need_no_cross_validation():
    mine = cell(point(grid={}), classes())
    assert mine.validation() == []
    assert [each.values for each in mine.choices([])] == [{}, {}]


def test_a_fit_that_diverged_is_not_chosen():
    mine = cell(point())
    stages = mine.validation()
    results = [run(stage) for stage in stages]
    first = mine.choices(results)
    for stage, result in zip(stages, results, strict=True):
        for place, fit in enumerate(stage.fits):
            if fit.values == first[0].values:
                result["loss"][place] = math.nan
    assert mine.choices(results)[0].values != first[0].values
    for result in results:
        result["loss"][:] = math.inf
    with pytest.raises(FloatingPointError, match="no fit of the cross-validation"):
        mine.choices(results)


@pytest.mark.filterwarnings("ignore::bnnzoo.chains.DivergenceWarning")
def test_a_stack_that_diverges_as_a_whole_is_named():
    stage = cell(point("mine"), lr=1e30).validation()[0]
    with pytest.raises(FloatingPointError, match=r"^mine on line: every chain diverged"):
        run(stage)


def test_splits_that_chose_different_batch_sizes_are_fitted_apart():
    mine = cell(point(grid={"weight_decay": (1e-3,), "batch_size": (8, 16)}), splits=3)
    stages = mine.validation()
    results = [run(stage) for stage in stages]
    for stage, result in zip(stages, results, strict=True):  # split 1 is best with 16, the others with 8
        for place, fit in enumerate(stage.fits):
            result["loss"][place] = float((stage.call["batch_size"] == 16) != (fit.split == 1))
    choices = mine.choices(results)
    final = mine.final(choices)
    assert [(dict(s.call), [f.split for f in s.fits]) for s in final] == [
        ({"batch_size": 8}, [0, 2]),
        ({"batch_size": 16}, [1]),
    ]
    ends = [run(stage) for stage in final]
    result = mine.result(choices, final, ends, 0.0)
    assert torch.equal(result["scores"]["rmse"][1], ends[1]["scores"]["rmse"][0])
    assert torch.equal(result["scores"]["rmse"][2], ends[0]["scores"]["rmse"][1])
    assert result["chosen"]["batch_size"].tolist() == [8, 16, 8]


def test_training_folds_are_cut_to_one_length():
    # 41 rows: 33 to train on, in 4 folds of 8 or 9, so that 24 or 25 remain: 24, and no batch of one.
    stage = cell(point(), folds=4, batch_size=8).validation()[0]
    posteriors, held_out = _fitted(stage)
    assert {posterior.info["num_data"] for posterior in posteriors} == {24}
    assert sorted(len(part) for part in held_out) == [8] * 12 + [9] * 4


@pytest.mark.parametrize(
    ("rows", "batch_size", "expected"), [((33, 32), 16, (32, 16)), ((33, 34), 16, (32, 16)), ((33, 34), 100, (33, 33))]
)
def test_common_rows(rows, batch_size, expected):
    assert common_rows([line(count) for count in rows], batch_size) == expected


def test_batch_sizes_of_one_are_left_alone():
    assert common_rows([line(5)], 1) == (5, 1)


def test_cut():
    assert [list(part) for part in cut(range(7), 3)] == [[0, 1], [2, 3, 4], [5, 6]]
    assert [len(part) for part in cut(range(5), 0)] == [1] * 5


def test_steps_of_the_grid_replace_epochs():
    protocol = Protocol(epochs=3)
    assert _protocol(protocol, {"steps": 7}).epochs_of(100, 50) == 4
    assert _protocol(protocol, {"epochs": 9}).epochs_of(100, 50) == 9
    assert _protocol(protocol, {}).epochs_of(100, 50) == 3
    assert Protocol(steps=7).epochs_of(101, 50) == 3


def lengths(rows, batch_size, **settings):
    """Steps of the fits of the cross-validation, and of those that are scored, without fitting."""
    data = Dataset(torch.zeros(rows, 1), torch.arange(float(rows)), name="long")
    mine = cell(point(grid={"batch_size": (batch_size,)}), data, **{"splits": 1, "folds": 5, **settings})
    [final] = mine.final([Choice({"batch_size": batch_size}, {})])
    found = [training_of(mine.validation()[0]), training_of(final)]
    return [epochs * math.ceil(rows / batch_size) for rows, batch_size, epochs in found]


def test_protein_is_not_trained_less_than_in_its_cross_validation():
    assert lengths(45730, 32, steps=1000) == [2 * 915, 2 * 1144]
    assert lengths(45730, 32, steps=1000, epochs=1) == [915, 1144]


def test_final_fits_take_as_many_steps_as_the_cross_validation():
    rng = np.random.default_rng(0)
    for _ in range(30):
        rows, batch_size, steps = (int(number) for number in rng.integers((40, 2, 1), (3000, 200, 99)))
        validated, final = lengths(rows, batch_size, steps=steps)
        assert validated <= final


def test_weight_decay_is_a_prior():
    # The mode under noise σ and N(0, s²) minimizes (1/2N) Σ (y - f)² + λ ‖w‖² with λ = σ² / (2 N s²).
    method = point(noise=0.5)
    assert method.prior_scale({"weight_decay": 1e-3}, 200) == pytest.approx(0.5 / math.sqrt(2 * 200 * 1e-3))
    assert method.prior_scale({"weight_decay": 1e-3}, 200, "classification") == pytest.approx(1 / math.sqrt(0.4))
    assert method.prior_scale({"prior_scale": 0.3}, 200) == 0.3
    assert method.prior_scale({}, 200) == 1.0
    stage = cell(point(noise=0.5)).validation()[0]
    posteriors, _ = _fitted(stage)
    for fit, posterior in zip(stage.fits, posteriors, strict=True):
        prior = posterior.bnn.priors["layers.0.weight"]
        expected = 0.5 / math.sqrt(2 * posterior.info["num_data"] * fit.values["weight_decay"])
        assert prior.scale.item() == pytest.approx(expected, rel=1e-6)


def test_an_ensemble_predicts_as_one():
    mine = cell(point(grid={}, noise=1.0, members=3), splits=1)
    [stage] = mine.validation()
    assert (stage.chains, stage.num_fits) == (3, 6)
    posteriors, held_out = _fitted(stage)
    means = posteriors[0].predict(held_out[0].x, 1).parameters["loc"]
    expected = (held_out[0].y - means.mean((0, 1))).square().mean().item()
    assert run(stage)["loss"][0].item() == pytest.approx(expected, rel=1e-5)
    choices = mine.choices([run(stage)])
    [final] = mine.final(choices)
    assert (final.chains, final.num_fits) == (6, 6)
    assert run(final)["scores"]["crps"].shape == (1, 2)


def test_test_rows_take_part_in_nothing_but_scores():
    data = line()
    mine = cell(point(), data)
    for split in range(2):
        train, test = mine.protocol.split(data, split)
        for part, held_out in mine.protocol.fold(data, split):
            rows = {tuple(row) for row in torch.cat([part.x, held_out.x]).tolist()}
            assert rows == {tuple(row) for row in train.x.tolist()}
            assert not rows & {tuple(row) for row in test.x.tolist()}


@pytest.mark.parametrize("noise_by", ["crps", "pll"])
def test_a_test_target_changes_no_choice(noise_by):
    data = line()
    first = cell(dropout(), data, splits=1, noise_by=noise_by)
    test = first.protocol.split(data, 0)[1]
    y = data.y.clone()
    y[(data.x == test.x[0]).all(1)] += 1e6
    assert (y != data.y).sum() == 1
    choices = []
    for mine in (first, cell(dropout(), Dataset(data.x, y, name="line"), splits=1, noise_by=noise_by)):
        choices += mine.choices([run(stage) for stage in mine.validation()])
    assert choices[0] == choices[1]


def test_scores_are_those_of_the_posterior_with_the_noise_chosen():
    mine = cell(dropout(grid={"rate": (0.1,), "weight_decay": (1e-3,)}))
    choices = mine.choices([run(stage) for stage in mine.validation()])
    [final] = mine.final(choices)
    scores = run(final)["scores"]
    posteriors, tests = _fitted(final)
    for split, (posterior, test) in enumerate(zip(posteriors, tests, strict=True)):
        loc = posterior.predict(test.x, 8, 0).parameters["loc"].double().numpy()
        y = test.y.double().numpy()
        for name, noise in (("pll", choices[split].noise), ("pll_tuned", choices[split].noise_pll)):
            density = stats.norm.logpdf(y, loc, noise[0])
            pll = (np.logaddexp.reduce(density, 1) - math.log(8)).mean(1)
            np.testing.assert_allclose(scores[name][split], pll, rtol=1e-4)
        np.testing.assert_allclose(scores["rmse"][split], np.sqrt(((loc.mean(1) - y) ** 2).mean(1)), rtol=1e-5)
        error = np.abs(loc.mean(1) - y)
        np.testing.assert_allclose(scores["crps_optimum"][split], 0.59494 * error.mean(1), rtol=1e-4)
