"""What every score must do, for every kind of prediction: a score that joins `KINDS` is tested here without more."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from bnnzoo.evaluation import pointwise, score
from bnnzoo.evaluation.metrics import KINDS, Scored, as_targets
from bnnzoo.moment_families import NormalTargets
from bnnzoo.moment_prediction import MomentPrediction
from bnnzoo.prediction import Prediction

BLIND = {  # scores that a change of the forecast's width leaves as they are
    "regression": {"rmse", "mae"},
    "counts": {"rmse", "mae"},
    "classification": {"accuracy", "error"},
}
RANDOM = {  # scores from draws, which differ with the place of a datum
    "regression": {"crps"},
    "counts": {"crps", "coverage_95", "width_95", "calibration_error"},
    "classification": set(),
}
SLOW = {"crps", "coverage_95", "width_95"}  # plain means, whose standard errors need no bootstrap


@dataclass(frozen=True)
class Family:
    """A kind of prediction, with targets that are drawn from it.

    Attributes:
        make: The parameters [chain, draw, N, ...] and targets for a number of data and a seed, both chains alike.
        family: Of one target.
        task: As of `Prediction`.
        spread: Parameters of forecasts that are wider or narrower by a factor.
        shift: Parameters of forecasts that are off.
        kind: What holds the parameters.
    """

    make: Callable
    family: type
    task: str
    spread: Callable
    shift: Callable
    kind: type = Prediction

    def prediction(self, parameters):
        tensors = {name: torch.as_tensor(value) for name, value in parameters.items()}
        return self.kind(tensors, self.family, self.task)

    def given(self, n=60, seed=0):
        parameters, y = self.make(n, seed)
        return self.prediction(parameters), y


def numbers(n, seed, targets=()):
    """Gaussians of two scales a chain, which differ by datum."""
    rng = np.random.default_rng(seed)
    truth, scale = 5 * rng.normal(size=(n, *targets)), rng.uniform(0.5, 2, size=(n, *targets))
    apart = 0.4 * rng.normal(size=(1, 1, n, *targets)) * np.array([1.0, -1.0]).reshape(1, 2, 1, *(1 for _ in targets))
    loc = np.repeat(truth + apart, 2, 0)
    which = rng.integers(0, 2, (n, *targets))
    chosen = np.take_along_axis(loc[0], which[None], 0)[0]
    return {"loc": loc, "scale": np.broadcast_to(scale, loc.shape).copy()}, chosen + scale * rng.normal(
        size=truth.shape
    )


def by_moments(n, seed):
    rng = np.random.default_rng(seed)
    loc, variance = 5 * rng.normal(size=(1, 1, n)), rng.uniform(0.2, 2, size=(1, 1, n))
    y = loc + np.sqrt(variance + 0.25) * rng.normal(size=loc.shape)
    both = {
        "loc": loc,
        "output_variance": variance,
        "scale": np.full((1, 1, 1, 1), 0.5),
        "probs": np.ones((1, 1, 1, 1)),
    }
    return {name: np.repeat(value, 2, 0) for name, value in both.items()}, y[0, 0]


def counted(n, seed):
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(1.5, 0.7, size=n))
    return {"rate": np.broadcast_to(rate, (2, 3, n)).copy()}, rng.poisson(rate).astype(float)


def labelled(n, seed, places=(), classes=4):
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, *places, classes))
    y = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    return {"logits": np.broadcast_to(logits, (2, 2, *logits.shape)).copy()}, y


def answered(n, seed, questions=()):
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, *questions))
    y = (rng.uniform(size=logits.shape) < 1 / (1 + np.exp(-logits))).astype(int)
    return {"logits": np.broadcast_to(logits, (2, 2, *logits.shape)).copy()}, y


def wider(parameters, factor):
    """Around the mean over draws."""
    loc = parameters["loc"]
    return {
        "loc": loc.mean(1, keepdims=True) + factor * (loc - loc.mean(1, keepdims=True)),
        "scale": factor * parameters["scale"],
    }


def noisier(parameters, factor):
    """Only wider: rates that differ by draw, with the same mean."""
    spread = np.array([0.3, 1.0, 1.7])[None, :, None] if factor > 1 else np.array([0.0, 0.5, 2.5])[None, :, None]
    return {"rate": parameters["rate"] * spread + 1e-9}


def moved(parameters):
    return parameters | {"loc": parameters["loc"] + 0.7}


FAMILIES = {
    "a number": Family(numbers, dist.Normal, "regression", wider, moved),
    "three numbers": Family(partial(numbers, targets=(3,)), dist.Normal, "regression", wider, moved),
    "by moments": Family(
        by_moments,
        NormalTargets,
        "regression",
        lambda p, f: p | {"output_variance": f**2 * p["output_variance"], "scale": f * p["scale"]},
        moved,
        MomentPrediction,
    ),
    "counts": Family(counted, dist.Poisson, "counts", noisier, lambda p: {"rate": 1.3 * p["rate"]}),
    "classes": Family(
        labelled,
        dist.Categorical,
        "classification",
        lambda p, f: {"logits": p["logits"] / f},
        lambda p: {"logits": np.roll(p["logits"], 1, -1)},
    ),
    "dense classes": Family(
        partial(labelled, places=(3, 2), classes=3),
        dist.Categorical,
        "classification",
        lambda p, f: {"logits": p["logits"] / f},
        lambda p: {"logits": np.roll(p["logits"], 1, -1)},
    ),
    "yes or no, twice": Family(
        partial(answered, questions=(2,)),
        dist.Bernoulli,
        "classification",
        lambda p, f: {"logits": p["logits"] / f},
        lambda p: {"logits": -p["logits"]},
    ),
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def value(kind, prediction, y, seed=0):
    """One score of the first chain alone."""
    chain = prediction.chain(0)
    mean = kind.values(Scored(chain, as_targets(chain, y), seed)).mean()
    return np.sqrt(mean) if kind.root_of else mean


def names_of(family):
    return list(KINDS[family.task])


@each_family
def test_scores_are_means_of_what_each_datum_adds(family):
    prediction, y = family.given()
    found, parts = score(prediction, y), pointwise(prediction, y)
    assert list(found) == [name for each in names_of(family) for name in (each, f"{each}_se")]
    assert found.sizes == {"chain": 2}
    assert parts.sizes == {"chain": 2, "obs": 60}
    for name, kind in KINDS[family.task].items():
        values = parts[kind.root_of or name]
        mean = values.mean("obs")
        np.testing.assert_allclose(found[name], np.sqrt(mean) if kind.root_of else mean, atol=1e-12, err_msg=name)
        assert found[name].dtype == values.dtype == np.float64
        assert found[name].attrs == kind.attributes
        assert kind.units in ("target", "nats", "1")
        assert kind.better in ("lower", "higher", "none")


@each_family
def test_chains_are_scored_alone_and_pooled_as_one(family):
    parameters, y = family.make(60, 0)
    # Chains that differ.
    other, _ = family.make(60, 1)
    mixed = {name: np.concatenate([value[:1], other[name][1:]]) for name, value in parameters.items()}
    prediction = family.prediction(mixed)
    both = score(prediction, y)
    for chain in range(2):
        alone = score(prediction.chain(chain), y)
        assert alone.equals(both.isel(chain=[chain]))
        assert score(prediction.chain(chain).pooled, y).equals(alone)
    pooled = score(prediction.pooled, y)
    assert pooled.sizes == {"chain": 1}
    # The average density is a mixture's, and is above the average of the log densities.
    joint = np.logaddexp(*pointwise(prediction, y).pll.values) - np.log(2)
    np.testing.assert_allclose(pooled.pll, joint.mean(), rtol=1e-5)


@each_family
def test_the_order_of_data_does_not_count(family):
    prediction, y = family.given()
    rows = np.random.default_rng(9).permutation(60)
    parameters = {n: v if v.shape[2] == 1 else v[:, :, rows] for n, v in prediction.parameters.items()}
    found, permuted = score(prediction, y), score(family.prediction(parameters), y[rows])
    parts, moved_parts = pointwise(prediction, y), pointwise(family.prediction(parameters), y[rows])
    for name, kind in KINDS[family.task].items():
        if name in RANDOM[family.task]:
            each = np.array([value(kind, prediction, y, seed) for seed in range(8)])
            spread = max(each.std(ddof=1), 1 / 60)
            assert abs(permuted[name][0] - each.mean()) < 8 * spread, name
            continue
        np.testing.assert_allclose(permuted[name], found[name], rtol=1e-6, atol=1e-12, err_msg=name)
        name = kind.root_of or name
        np.testing.assert_allclose(moved_parts[name], parts[name][:, rows], rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("name", ["a number", "three numbers", "by moments"])
def test_units_of_the_target_change_scores_as_their_attributes_say(name):
    family = FAMILIES[name]
    parameters, y = family.make(60, 0)
    factor, shift = 40.0, 1000.0
    powers = {"loc": 1, "scale": 1, "output_variance": 2, "probs": 0}
    other = {n: value * factor ** powers[n] + (shift if n == "loc" else 0.0) for n, value in parameters.items()}
    before, after = score(family.prediction(parameters), y), score(family.prediction(other), factor * y + shift)
    targets = y[0].size
    for each in names_of(family):
        units = before[each].attrs["units"]
        expected = {"target": factor * before[each], "nats": before[each] - targets * np.log(factor), "1": before[each]}
        np.testing.assert_allclose(after[each], expected[units], rtol=1e-6, err_msg=each)
        error = {"target": factor}.get(units, 1.0) * before[f"{each}_se"]
        np.testing.assert_allclose(after[f"{each}_se"], error, rtol=1e-5, atol=1e-12, err_msg=each)


@each_family
def test_standard_errors_are_those_of_the_bootstrap(family):
    parameters, y = family.make(150, 0)
    # Calibration errors are roots of squares, or nearly: their first order holds where they are far from 0.
    off = family.prediction(family.shift(parameters)).chain(0)
    found, parts = score(off, y), pointwise(off, y)
    rng = np.random.default_rng(7)
    resampled = []
    for _ in range(200):
        rows = rng.integers(0, 150, 150)
        each = {n: v if v.shape[2] == 1 else v[:, :, rows] for n, v in off.parameters.items()}
        resampled.append((family.prediction(each), y[rows]))
    for name, kind in KINDS[family.task].items():
        error = found[f"{name}_se"].item()
        if name in SLOW:
            assert error == pytest.approx(parts[name].values.std(ddof=1) / 150**0.5), name
            continue
        spread = np.std([value(kind, *each) for each in resampled], ddof=1)
        # The bootstrap's own relative error is 1 / √400.
        assert error == pytest.approx(spread, rel=0.35, abs=1e-9), name


@each_family
def test_one_datum_has_no_standard_error(family):
    prediction, y = family.given(n=1)
    found = score(prediction, y)
    for name in names_of(family):
        assert np.isfinite(found[name]).all(), name
        assert np.isnan(found[f"{name}_se"]).all(), name


@each_family
def test_the_truth_beats_forecasts_that_are_off_or_of_another_width(family):
    parameters, y = family.make(2500, 3)
    truth = pointwise(family.prediction(parameters).chain(0), y)
    spreads = [family.spread(parameters, factor) for factor in (1.5, 0.6)]
    cases = [(family.shift(parameters), set()), *((each, BLIND[family.task]) for each in spreads)]
    for changed, blind in cases:
        other = pointwise(family.prediction(changed).chain(0), y)
        for name, kind in KINDS[family.task].items():
            if kind.better == "none":
                continue
            name_ = kind.root_of or name
            sign = 1.0 if kind.better == "lower" else -1.0
            gain = sign * (other[name_] - truth[name_]).values[0]
            if name in blind:
                np.testing.assert_allclose(gain, 0.0, atol=1e-5, err_msg=name)
                continue
            assert gain.mean() > 5 * gain.std(ddof=1) / 2500**0.5, name


def test_a_perfect_fit_leaves_no_error():
    prediction = Prediction(
        {"loc": torch.zeros(1, 1, 2, dtype=torch.float64), "scale": torch.ones(1, 1, 1)}, dist.Normal, "regression"
    )
    found = score(prediction, [0.0, 0.0])
    assert found.rmse.item() == found.rmse_se.item() == 0.0
