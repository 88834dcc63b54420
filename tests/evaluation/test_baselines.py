"""Baselines against closed forms, brute force and scikit-learn's parts."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

from bnnzoo.data import Dataset, Split
from bnnzoo.evaluation import baselines, score
from bnnzoo.evaluation.baseline_models import predict


def linear(n=60, outputs=1, noise=3.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)) * [1.0, 10.0, 0.1] + [5.0, 0.0, -2.0]
    y = 50 + x @ rng.normal(size=(3, outputs)) * 4 + noise * rng.normal(size=(n, outputs))
    return Dataset(x, y[:, 0] if outputs == 1 else y)


def halves(data):
    n = len(data) // 2
    return Split(data[:n], data[n:])


def test_constant_of_a_regression_in_own_units():
    train, test = halves(linear())
    y, new = train.y.double().numpy(), test.y.double().numpy()
    scores = baselines(Split(train, test))["constant"]
    assert scores["rmse"] == pytest.approx(np.mean((new - y.mean()) ** 2) ** 0.5, rel=1e-5)
    assert -scores["pll"] == pytest.approx(-stats.norm(y.mean(), y.std()).logpdf(new).mean(), rel=1e-5)
    assert scores["width_95"] == pytest.approx(2 * 1.959964 * y.std(), rel=1e-4)
    z = (new - y.mean()) / y.std()
    crps = y.std() * np.mean(z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - np.pi**-0.5)
    assert scores["crps"] == pytest.approx(crps, rel=0.05)  # of 1000 draws a datum


def test_ridge_is_the_best_of_brute_force_leave_one_out():
    train, test = halves(linear(noise=20.0))
    x, y = train.x.double().numpy(), train.y.double().numpy()
    center, scale, mean, std = x.mean(0), x.std(0), y.mean(), y.std()
    x, new, y = (x - center) / scale, (test.x.double().numpy() - center) / scale, (y - mean) / std

    def fitted(rows, alpha, at):
        # the mean of the rows left is not zero: the intercept is part of the fit
        design, target = x[rows] - x[rows].mean(0), y[rows] - y[rows].mean()
        w = np.linalg.solve(design.T @ design + alpha * np.eye(3), design.T @ target)
        return (at - x[rows].mean(0)) @ w + y[rows].mean()

    def leave_one_out(alpha):
        rows = np.arange(len(y))
        return np.mean([(fitted(rows != i, alpha, x[i]) - y[i]) ** 2 for i in rows])

    alphas = np.logspace(-4, 5, 37)
    errors = [leave_one_out(alpha) for alpha in alphas]
    best = int(np.argmin(errors))
    assert 0 < best < 36
    loc = fitted(np.ones(len(y), bool), alphas[best], new) * std + mean
    noise = errors[best] ** 0.5 * std
    scores = baselines(Split(train, test))["ridge"]
    observed = test.y.double().numpy()
    assert scores["rmse"] == pytest.approx(np.mean((loc - observed) ** 2) ** 0.5, rel=1e-4)
    assert -scores["pll"] == pytest.approx(-stats.norm(loc, noise).logpdf(observed).mean(), rel=1e-4)


def test_ridge_beats_the_constant_where_the_truth_is_linear_and_reaches_its_noise():
    scores = baselines(halves(linear(n=2000)))
    assert scores["ridge"]["rmse"] == pytest.approx(3.0, rel=0.1)
    assert scores["ridge"]["coverage_95"] == pytest.approx(0.95, abs=0.035)
    assert scores["constant"]["rmse"] > 3 * scores["ridge"]["rmse"]


def test_several_targets_have_a_ridge_each():
    data = linear(n=100, outputs=2)
    both = predict(halves(data))
    for c in range(2):
        one = predict(halves(Dataset(data.x, data.y[:, c])))
        for name in ("constant", "ridge"):
            torch.testing.assert_close(both[name].mean[:, c], one[name].mean)
            torch.testing.assert_close(both[name].std[:, c], one[name].std)


def test_targets_and_inputs_that_never_change():
    data = Dataset(np.ones((10, 2)), np.full(10, 7.0))
    scores = baselines(halves(data))
    for name in ("constant", "ridge"):
        assert scores[name]["rmse"] == pytest.approx(0.0, abs=1e-5)
        assert np.isfinite(scores[name]["pll"])


def classes(n=400, seed=1):
    rng = np.random.default_rng(seed)
    y = rng.choice(3, size=n, p=[0.5, 0.3, 0.2])
    return Dataset(rng.normal(size=(n, 2)) + 1.5 * np.eye(3)[y][:, :2], y, task="classification")


def test_constant_of_a_classification_is_the_frequencies():
    train, test = halves(classes())
    counts = np.bincount(train.y, minlength=3) + 1
    scores = baselines(Split(train, test))["constant"]
    assert -scores["pll"] == pytest.approx(-np.log(counts / counts.sum())[test.y].mean(), rel=1e-5)
    assert scores["accuracy"] == pytest.approx((test.y.numpy() == counts.argmax()).mean())


def test_logistic_regression():
    train, test = halves(classes())
    center, scale = train.x.mean(0), train.x.std(0, correction=0)
    model = LogisticRegression(max_iter=500).fit((train.x - center) / scale, train.y)
    probs = model.predict_proba((test.x - center) / scale)
    prediction = predict(Split(train, test))["logistic"]
    np.testing.assert_allclose(prediction.probs, probs, atol=5e-3)
    assert score(prediction, test.y)["accuracy"] == pytest.approx((probs.argmax(1) == test.y.numpy()).mean())


def test_a_class_that_training_never_saw_costs_but_not_infinitely():
    train, test = halves(classes())
    keep = train.y != 2
    for name, scores in baselines(Split(train[keep], test)).items():
        assert np.isfinite(scores["pll"]), name
        assert scores["pll"] < -1.0


def test_one_class_alone_has_no_logistic_regression():
    data = Dataset(np.random.default_rng(0).normal(size=(10, 2)), np.zeros(10, int), task="classification")
    assert set(baselines(halves(data))) == {"constant"}


def test_dense_labels_have_the_constant_alone():
    rng = np.random.default_rng(2)
    data = Dataset(rng.normal(size=(20, 1, 4, 4)), rng.integers(0, 3, (20, 4, 4)), task="classification")
    scores = baselines(halves(data))
    assert set(scores) == {"constant"}
    assert scores["constant"]["accuracy"] == pytest.approx(1 / 3, abs=0.2)


def test_several_yes_no_targets():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(600, 2))
    y = (x + 0.5 * rng.normal(size=(600, 2)) > 0).astype(float)
    y = np.concatenate([y, np.zeros((600, 1))], 1)  # one that never happens
    scores = baselines(halves(Dataset(x, y.astype(int), task="classification")))
    assert scores["constant"]["accuracy"] == pytest.approx(2 / 3, abs=0.06)
    assert scores["logistic"]["accuracy"] > 0.85


def test_counts():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2000, 2))
    rate = np.exp(1.0 + 0.7 * x[:, 0])
    split = halves(Dataset(x, rng.poisson(rate), task="counts"))
    scores = baselines(split)
    y = split.test.y.numpy()
    assert -scores["constant"]["pll"] == pytest.approx(-stats.poisson(split.train.y.mean()).logpmf(y).mean(), rel=1e-4)
    truth = -stats.poisson(rate[1000:]).logpmf(y).mean()
    assert truth - 0.02 < -scores["poisson"]["pll"] < truth + 0.02
    assert scores["poisson"]["coverage_95"] >= 0.92


def test_images_are_rows_of_pixels_and_training_rows_bounded():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(300, 1, 3, 3))
    split = halves(Dataset(x, x[:, 0, 0, 0] + 0.1 * rng.normal(size=300)))
    few = baselines(split, max_rows=20, seed=1)
    again, other = (baselines(split, max_rows=20, seed=seed)["ridge"] for seed in (1, 2))
    assert few["ridge"].equals(again)
    assert not few["ridge"].equals(other)
    assert few["constant"].equals(baselines(split)["constant"])
    assert 0.1 < baselines(split)["ridge"]["rmse"] * 1.1 < few["ridge"]["rmse"] * 1.1 < 0.5


def test_sets_that_do_not_belong_together():
    with pytest.raises(ValueError, match="must be alike"):
        baselines(Split(linear(), classes()))
    with pytest.raises(ValueError, match="must be alike"):
        baselines(Split(linear(), linear(outputs=2)))
    with pytest.raises(ValueError, match="max_rows must be at least 2, given 1"):
        baselines(halves(linear()), max_rows=1)
