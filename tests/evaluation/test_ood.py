"""How well uncertainty tells outside inputs from inside ones, against counts, closed forms and simulation."""

import math
from fractions import Fraction

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from sklearn.metrics import average_precision_score

from bnnzoo import BayesianNetwork, Prediction, data, fit, guides, likelihoods, models
from bnnzoo.evaluation import held_out_classes, ood_scores, uncertainties
from tests.statistical import bound

NAMES = ("auroc", "aupr_out", "aupr_in", "fpr_95")


def of_variance(*chains):
    """A regression of one draw whose predictive variances are given, [N] each chain."""
    scale = torch.as_tensor(np.stack([np.asarray(values, np.float64) for values in chains])).sqrt()[:, None]
    return Prediction({"loc": torch.zeros_like(scale), "scale": scale}, dist.Normal, "regression")


def of_probs(probs):
    """A classification of given probabilities, [chain, draw, N, ..., K]."""
    return Prediction({"probs": torch.as_tensor(probs)}, dist.Categorical, "classification")


def scored(low, high, **options):
    result = ood_scores(of_variance(low), of_variance(high), **{"resamples": 2, **options}).isel(chain=0)
    return {name: float(result[name].sel(measure="variance")) for name in [*NAMES, *(f"{n}_se" for n in NAMES)]}


def tied(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 12, size=60), rng.integers(4, 15, size=45)


def test_auroc_is_the_mann_whitney_statistic():
    low, high = tied()
    pairs = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
    assert scored(low, high)["auroc"] == pytest.approx(pairs, abs=1e-12)


def test_auroc_of_two_gaussians():
    rng = np.random.default_rng(1)
    distance = 1.3
    found = scored(np.exp(rng.normal(size=3000)), np.exp(rng.normal(distance, size=2000)), resamples=50)
    exact = 0.5 * (1 + math.erf(distance / 2))  # Φ(d / √2)
    # The spread of 50 resamples is itself off by a tenth: five times that at most.
    assert abs(found["auroc"] - exact) < 1.5 * bound(1) * found["auroc_se"]
    assert 0.003 < found["auroc_se"] < 0.009


def test_average_precision_by_hand():
    # Thresholds from the top: 4 finds one of three; 3 two, and one inside input; 2 all three, and three inside inputs.
    found = scored([1, 2, 2, 3], [2, 3, 4])
    third = Fraction(1, 3)
    assert found["aupr_out"] == pytest.approx(float(third * 1 + third * Fraction(2, 3) + third * Fraction(3, 6)))
    # From below: 1 finds one of four; 2 three, and one outside input; 3 all four, and two outside inputs.
    quarter = Fraction(1, 4)
    expected = quarter * 1 + 2 * quarter * Fraction(3, 4) + quarter * Fraction(4, 6)
    assert found["aupr_in"] == pytest.approx(float(expected))


def test_average_precision_of_scikit_learn():
    low, high = tied(2)
    labels, values = np.repeat([0, 1], [len(low), len(high)]), np.concatenate([low, high])
    found = scored(low, high)
    assert found["aupr_out"] == pytest.approx(average_precision_score(labels, values), abs=1e-12)
    assert found["aupr_in"] == pytest.approx(average_precision_score(1 - labels, -values), abs=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (range(1, 21), [5, 19, 19.5, 30], 2 / 4),  # 19 of 20 are 95%
        ([*range(1, 19), 19, 19], [18, 19, 19.5, 30], 2 / 4),  # 18 would pass 90%: both of the tied must
        (range(1, 20), [18.5, 19, 20], 2 / 3),  # 18 of 19 are 94.7%: all must pass
        ([1, 1, 1], [1, 1], 1.0),
        ([1, 2, 3], [4, 5], 0.0),
        (range(1, 101), np.arange(1, 101) + 0.5, 0.94),  # 95 of 100 pass: 95.5 does not
    ],
)
def test_false_positives_by_hand(low, high, expected):
    assert scored(list(low), list(high))["fpr_95"] == pytest.approx(expected)


def test_better_than_chance_is_above_a_half():
    low, high = np.linspace(1, 2, 30), np.linspace(1.5, 2.5, 20)
    good, bad = scored(low, high), scored(high, low)
    assert good["auroc"] > 0.8
    assert good["auroc"] == pytest.approx(1 - bad["auroc"])
    assert good["fpr_95"] < 0.6 < bad["fpr_95"]
    assert good["aupr_out"] > 20 / 50 > 0.3
    assert good["aupr_in"] > bad["aupr_out"]
    same = scored([1.0] * 30, [1.0] * 20)
    assert [same[name] for name in NAMES] == pytest.approx([0.5, 0.4, 0.6, 1.0])


def test_standard_errors_are_the_spread_over_data_sets():
    rng = np.random.default_rng(3)

    def sets():
        return np.exp(rng.normal(size=150)), np.exp(rng.normal(1.2, 1.0, size=100))

    spread = {name: np.std([found[name] for found in repeated], ddof=1) for name, repeated in _by_name(sets, 120, 2)}
    stated = {name: np.mean([found[f"{name}_se"] for found in repeated]) for name, repeated in _by_name(sets, 8, 60)}
    for name in NAMES:
        # 120 data sets tell the spread to 6.5%, 8 x 60 resamples to 5%; that of a quantile is biased by some more.
        assert 0.65 < stated[name] / spread[name] < 1.5, name


def _by_name(sets, count, resamples):
    repeated = [scored(*sets(), resamples=resamples) for _ in range(count)]
    return [(name, repeated) for name in NAMES]


@pytest.mark.parametrize(("few", "many"), [(60, 600), (600, 60)])  # the few make up most of the error
def test_standard_error_of_auroc_is_delong_s(few, many):
    rng = np.random.default_rng(4)
    low, high = np.exp(rng.normal(size=few)), np.exp(rng.normal(0.8, size=many))
    wins = (high[:, None] > low) + 0.5 * (high[:, None] == low)
    delong = math.sqrt(wins.mean(1).var(ddof=1) / len(high) + wins.mean(0).var(ddof=1) / len(low))
    found = scored(low, high, resamples=200)["auroc_se"]
    assert found == pytest.approx(delong, rel=1.1 * bound(1) / math.sqrt(400))


def test_chains_are_scored_one_by_one_and_pooled_as_one():
    rng = np.random.default_rng(5)
    low, high = rng.uniform(1, 2, (2, 40)), rng.uniform(1.2, 2.2, (2, 30))
    inside, outside = of_variance(*low), of_variance(*high)
    both = ood_scores(inside, outside, resamples=2)
    assert dict(both.sizes) == {"chain": 2, "measure": 2}
    assert list(both.measure.values) == ["variance", "epistemic"]
    assert both.attrs == {"inside": 40, "outside": 30, "resamples": 2}
    assert set(both.data_vars) == {*NAMES, *(f"{name}_se" for name in NAMES)}
    for name in NAMES:
        assert {"long_name", "units", "better"} <= set(both[name].attrs)
    for chain in range(2):
        expected = scored(low[chain], high[chain])["auroc"]
        assert float(both.auroc.sel(chain=chain, measure="variance")) == pytest.approx(expected)
    pooled = ood_scores(inside.pooled, outside.pooled, resamples=2)
    assert pooled.sizes["chain"] == 1
    expected = scored(low.mean(0), high.mean(0))["auroc"]  # the loc is 0 in both: variances average
    assert pooled.auroc.sel(measure="variance").item() == pytest.approx(expected)


def test_the_seed_fixes_standard_errors_alone():
    low, high = tied(6)
    first, again, other = (scored(low, high, seed=seed, resamples=20) for seed in (0, 0, 1))
    assert first == again
    assert [first[name] for name in NAMES] == [other[name] for name in NAMES]
    assert first["auroc_se"] != other["auroc_se"]


def test_measures_of_classes():
    draws = [[[1.0, 0, 0], [0.5, 0.5, 0]], [[0, 1.0, 0], [0.5, 0.5, 0]]]  # [draw, N, K]: one disagrees, one does not
    found = uncertainties(of_probs(np.array([draws])))
    np.testing.assert_allclose(found["entropy"], [math.log(2)] * 2)
    np.testing.assert_allclose(found["mutual_information"], [math.log(2), 0.0], atol=1e-12)
    np.testing.assert_allclose(found["max_probability"], [0.5, 0.5])


def test_measures_of_numbers():
    loc = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
    found = uncertainties(Prediction({"loc": loc, "scale": torch.full((1, 1, 1), 3.0)}, dist.Normal, "regression"))
    np.testing.assert_allclose(found["variance"], [10.0, 9.0])
    np.testing.assert_allclose(found["epistemic"], [1.0, 0.0])


def test_draws_that_agree_have_no_epistemic_part():
    logits = torch.randn(1, 1, 50, 7, generator=torch.Generator().manual_seed(0)).expand(1, 30, 50, 7)
    found = uncertainties(Prediction({"logits": logits}, dist.Categorical, "classification"))
    assert (found["mutual_information"] == 0).all()
    loc = logits[..., 0] * 1e3
    found = uncertainties(Prediction({"loc": loc, "scale": torch.ones(1, 1, 1)}, dist.Normal, "regression"))
    assert (found["epistemic"] == 0).all()


def test_sure_predictions_still_differ():
    logits = torch.tensor([30.0, 40.0, 50.0])[:, None] * torch.tensor([1.0, 0.0])
    found = uncertainties(Prediction({"logits": logits[None, None]}, dist.Categorical, "classification"))
    assert (np.diff(found["entropy"]) < 0).all()
    np.testing.assert_allclose(found["max_probability"], np.exp([-30.0, -40.0, -50.0]), rtol=1e-9)


def test_two_classes_by_one_probability():
    prediction = Prediction({"probs": torch.tensor([[[0.2, 0.5]]])}, dist.Bernoulli, "classification")
    np.testing.assert_allclose(uncertainties(prediction)["max_probability"], [0.2, 0.5], rtol=1e-6)
    outside = Prediction({"probs": torch.tensor([[[0.6, 0.5, 0.6]]])}, dist.Bernoulli, "classification")
    found = ood_scores(prediction, outside, resamples=2).auroc.sel(chain=0, measure="entropy")
    assert found.item() == pytest.approx(3.5 / 6)


def test_dense_labels_are_averaged():
    probs = np.zeros((1, 1, 2, 1, 2, 2))  # two images of 1 x 2 pixels
    probs[0, 0, 0] = [[1.0, 0.0], [0.5, 0.5]]
    probs[0, 0, 1] = [[0.5, 0.5], [0.5, 0.5]]
    np.testing.assert_allclose(uncertainties(of_probs(probs))["entropy"], [math.log(2) / 2, math.log(2)])


def test_units_of_one_of_several_targets_reorder_nothing():
    rng = np.random.default_rng(7)
    unit = torch.tensor([1.0, 1000.0])

    def both(unit, size, shift):
        loc = torch.as_tensor(rng.normal(size=(1, 5, size, 2))) * unit
        scale = torch.as_tensor(rng.uniform(1 + shift, 2 + shift, size=(1, 1, size, 2))) * unit
        return Prediction({"loc": loc, "scale": scale}, dist.Normal, "regression")

    results = []
    for chosen in (torch.ones(2), unit):
        rng = np.random.default_rng(7)
        results.append(ood_scores(both(chosen, 40, 0.0), both(chosen, 30, 0.5), resamples=2))
    for name in NAMES:
        np.testing.assert_allclose(results[0][name], results[1][name])
    assert results[0].auroc.sel(measure="variance").item() > 0.6


def test_counts_and_moments_have_scores():
    rate = torch.rand(1, 4, 20, generator=torch.Generator().manual_seed(0)) + 1
    counts = Prediction({"rate": rate}, dist.Poisson, "counts")
    assert list(ood_scores(counts, counts, resamples=2).measure) == ["variance", "epistemic"]
    x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3
    torch.manual_seed(0)
    bnn = BayesianNetwork(models.MLP(3, 3, (4,)), likelihoods.Categorical())
    posterior = fit(bnn, guides.MomentPropagation(bnn), (x, y), epochs=1, chains=2, progress=False)
    near, far = posterior.predict(x), posterior.predict(20 * x)
    found = ood_scores(near, far, resamples=2)
    assert list(found.measure) == ["entropy", "mutual_information", "max_probability"]
    assert np.isfinite(found.auroc).all()
    assert float(found.auroc.sel(measure="mutual_information").mean()) > 0.7
    assert ood_scores(near.pooled, far.pooled, resamples=2).sizes["chain"] == 1


@pytest.mark.parametrize(
    ("inside", "outside", "options", "message"),
    [
        (of_variance([1, 2]), of_probs(np.full((1, 1, 2, 2), 0.5)), {}, "must be predictions by one posterior"),
        (of_probs(np.full((1, 1, 2, 4), 0.25)), of_probs(np.full((1, 1, 2, 2), 0.5)), {}, "by one posterior"),
        (of_variance([1, 2], [1, 2]), of_variance([1, 2]), {}, "by one posterior"),
        (of_variance([1, 2]), of_variance([]), {}, "2 inside and 0 outside"),
        (of_variance([1, 2]), of_variance([1, math.inf]), {}, "variance of 1 of 2 predictions is not finite"),
        (of_variance([1, 2]), of_variance([1, 2]), {"resamples": 1}, "resamples must be at least 2, given 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(inside, outside, options, message):
    with pytest.raises(ValueError, match=message):
        ood_scores(inside, outside, **options)


def labelled(names=("ape", "bee", "cat", "dog"), test=True):
    labels = np.array([3, 0, 1, 2, 1, 3, 0])
    images = np.arange(7, dtype=np.uint8)[:, None, None] * np.ones((7, 2, 2), np.uint8)
    part = data.Dataset.from_images(images, labels, name="animals", class_names=names) if test else None
    return data.Dataset.from_images(images + 10, labels, name="animals", class_names=names, test=part)


@pytest.mark.parametrize("classes", [["dog", "bee"], [1, 3], torch.tensor([3, 1]), np.array([1, 3])])
def test_hidden_classes(classes):
    kept, hidden = held_out_classes(labelled(), classes)
    assert kept.class_names == ("ape", "cat")
    assert hidden.class_names == ("bee", "dog")
    assert kept.y.tolist() == [0, 1, 0]
    assert hidden.y.tolist() == [1, 0, 0, 1]
    assert (255 * kept.x[:, 0, 0, 0]).round().tolist() == [11, 13, 16]
    assert (255 * hidden.x[:, 0, 0, 0]).round().tolist() == [10, 12, 14, 15]
    assert (kept.num_classes, hidden.num_classes) == (2, 2)
    assert (255 * kept.test.x[:, 0, 0, 0]).round().tolist() == [1, 3, 6]
    assert (255 * hidden.test.x[:, 0, 0, 0]).round().tolist() == [0, 2, 4, 5]
    assert hidden.test.class_names == ("bee", "dog")


def test_hidden_classes_of_digits_and_of_unnamed_labels():
    digits = data.load("digits")
    kept, hidden = held_out_classes(digits, range(5, 10))
    assert len(kept) + len(hidden) == len(digits)
    assert kept.num_classes == hidden.num_classes == 5
    assert hidden.class_names == ("5", "6", "7", "8", "9")
    torch.testing.assert_close(hidden.x, digits.x[digits.y >= 5])
    assert (hidden.y == digits.y[digits.y >= 5] - 5).all()
    kept, hidden = held_out_classes(data.Dataset(np.zeros((4, 1)), [0, 1, 2, 2], task="classification"), [2])
    assert kept.num_classes == 2
    assert hidden.num_classes == 1
    assert kept.class_names is None
    assert hidden.y.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("dataset", "classes", "message"),
    [
        (labelled(test=False), ["cow"], "there is no class 'cow' in data set 'animals': give labels 0 to 3, or of ape"),
        (labelled(test=False), [4], "there is no class 4"),
        (labelled(test=False), [-1], "there is no class -1"),
        (labelled(test=False), [0.5], r"there is no class 0\.5"),
        (labelled(test=False), [1, "bee"], "given twice"),
        (labelled(test=False), [], "of 4, 0 are hidden"),
        (labelled(test=False), [0, 1, 2], "of 4, 3 are hidden"),
        (data.load("diabetes"), [0], "of data with one class label a row"),
    ],
)
def test_what_cannot_be_hidden_is_refused(dataset, classes, message):
    with pytest.raises(ValueError, match=message):
        held_out_classes(dataset, classes)
