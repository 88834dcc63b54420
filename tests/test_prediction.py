"""Predictions against numpy and scipy on small mixtures written out by hand."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import optimize, stats
from scipy.special import logsumexp, softmax
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bnnzoo import prediction as module
from bnnzoo.moment_families import BernoulliTargets
from bnnzoo.moment_prediction import MomentPrediction
from bnnzoo.prediction import Prediction, Summary, summarize

CHAINS, DRAWS, N = 2, 3, 5


def rng(seed=0):
    return np.random.default_rng(seed)


def normal(shape=(CHAINS, DRAWS, N), shared=True, seed=0, dtype=torch.float64):
    generator = rng(seed)
    loc = generator.normal(0, 2, shape)
    scale = generator.uniform(0.3, 2, (*shape[:2], 1, *shape[3:]) if shared else shape)
    parameters = {"loc": torch.tensor(loc, dtype=dtype), "scale": torch.tensor(scale, dtype=dtype)}
    return Prediction(parameters, dist.Normal, "regression")


def poisson(shape=(CHAINS, DRAWS, N)):
    return Prediction({"rate": torch.tensor(rng().gamma(2, 2, shape))}, dist.Poisson, "counts")


def categorical(shape=(CHAINS, DRAWS, N, 4)):
    return Prediction({"logits": torch.tensor(rng().normal(0, 2, shape))}, dist.Categorical, "classification")


def bernoulli(shape=(CHAINS, DRAWS, N)):
    return Prediction({"logits": torch.tensor(rng().normal(0, 2, shape))}, dist.Bernoulli, "classification")


def arrays(prediction, *names):
    """Parameters as numpy arrays, broadcast to one shape, chains and draws flattened."""
    values = np.broadcast_arrays(*(prediction.parameters[name].numpy() for name in names))
    return [value.reshape(-1, *value.shape[2:]) for value in values]


def entropy(p):
    return -(p * np.log(p)).sum(-1)


REGRESSIONS = {
    "shared scale": normal(),
    "own scales": normal(shared=False),
    "three targets, shared scales": normal((CHAINS, DRAWS, N, 3)),
    "three targets, own scales": normal((CHAINS, DRAWS, N, 3), shared=False),
    "one draw": normal((1, 1, N)),
    "one input": normal((CHAINS, DRAWS, 1)),
}
regressions = pytest.mark.parametrize("prediction", REGRESSIONS.values(), ids=REGRESSIONS)


@regressions
def test_moments_are_the_mixtures(prediction):
    loc, scale = arrays(prediction, "loc", "scale")
    mean = loc.mean(0)
    variance = (loc**2 + scale**2).mean(0) - mean**2
    np.testing.assert_allclose(prediction.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(prediction.variance, variance, rtol=1e-10)
    np.testing.assert_allclose(prediction.std, variance**0.5, rtol=1e-10)
    np.testing.assert_allclose(prediction.aleatoric, (scale**2).mean(0), rtol=1e-12)
    np.testing.assert_allclose(prediction.epistemic, loc.var(0), rtol=1e-12)
    assert prediction.mean.shape == prediction.shape[2:]


@regressions
def test_shape_and_draws(prediction):
    assert prediction.shape == prediction.distribution.batch_shape
    assert len(prediction) == prediction.shape[2]
    assert torch.equal(prediction.draws, prediction.parameters["loc"])


@regressions
def test_log_prob_is_the_mixtures_joint_density(prediction):
    loc, scale = arrays(prediction, "loc", "scale")
    y = rng(1).normal(0, 3, loc.shape[1:])
    log_density = stats.norm(loc, scale).logpdf(y)
    joint = log_density.reshape(*log_density.shape[:2], -1).sum(-1)
    expected = logsumexp(joint, axis=0) - math.log(len(joint))
    for given in (y, y.tolist(), torch.tensor(y), torch.tensor(y)[..., None]):
        value = prediction.log_prob(given)
        np.testing.assert_allclose(value, expected, rtol=1e-6 if isinstance(given, list) else 1e-12)
        assert value.shape == (len(prediction),)


@regressions
def test_cdf_and_quantile_are_the_mixtures(prediction):
    loc, scale = arrays(prediction, "loc", "scale")
    y = rng(1).normal(0, 3, loc.shape[1:])
    np.testing.assert_allclose(prediction.cdf(y), stats.norm(loc, scale).cdf(y).mean(0), atol=1e-12)
    for q in (1e-6, 0.025, 0.5, 0.9):
        expected = np.empty(loc.shape[1:])
        for place in np.ndindex(expected.shape):
            mixture = stats.norm(loc[(slice(None), *place)], scale[(slice(None), *place)])
            expected[place] = optimize.brentq(lambda v, m=mixture, q=q: m.cdf(v).mean() - q, -100, 100, xtol=1e-13)
        np.testing.assert_allclose(prediction.quantile(q), expected, atol=1e-8)


def test_quantile_between_far_components():
    prediction = Prediction(
        {"loc": torch.tensor([-1000.0, 1000.0]).view(1, 2, 1), "scale": torch.ones(1, 2, 1)}, dist.Normal, "regression"
    )
    assert prediction.quantile(0.25).item() == pytest.approx(-1000, abs=1e-3)
    assert prediction.quantile(0.75).item() == pytest.approx(1000, abs=1e-3)
    assert prediction.quantile(0.25 + 0.5 * stats.norm.cdf(1) - 0.25).item() == pytest.approx(-999, abs=1e-2)


@regressions
def test_interval_covers_its_level(prediction):
    loc, scale = arrays(prediction, "loc", "scale")
    low, high = prediction.interval(0.8)
    assert (low < high).all()
    inside = stats.norm(loc, scale).cdf(high.numpy()).mean(0) - stats.norm(loc, scale).cdf(low.numpy()).mean(0)
    np.testing.assert_allclose(inside, 0.8, atol=1e-9)
    np.testing.assert_allclose(stats.norm(loc, scale).cdf(low.numpy()).mean(0), 0.1, atol=1e-9)


def test_single_precision_quantiles():
    prediction = normal(dtype=torch.float32)
    np.testing.assert_allclose(prediction.quantile(0.3), normal().quantile(0.3), atol=1e-5)
    assert prediction.quantile(0.3).dtype == torch.float32


def test_spread_of_large_values_does_not_cancel():
    loc = torch.tensor([1e4 - 1, 1e4, 1e4 + 1]).view(1, 3, 1)
    prediction = Prediction({"loc": loc, "scale": torch.ones(1, 3, 1)}, dist.Normal, "regression")
    assert prediction.epistemic.item() == pytest.approx(2 / 3, rel=1e-5)
    parts = [
        Prediction({"loc": loc[:, [i]], "scale": torch.ones(1, 1, 1)}, dist.Normal, "regression") for i in range(3)
    ]
    assert summarize(iter(parts)).epistemic.item() == pytest.approx(2 / 3, rel=1e-5)


def test_log_prob_far_away_is_finite():
    assert normal(dtype=torch.float32).log_prob(torch.full((N,), 1e4)).isfinite().all()


def test_poisson_moments_and_log_prob():
    prediction = poisson()
    (rate,) = arrays(prediction, "rate")
    np.testing.assert_allclose(prediction.mean, rate.mean(0))
    np.testing.assert_allclose(prediction.aleatoric, rate.mean(0))
    np.testing.assert_allclose(prediction.epistemic, rate.var(0))
    y = np.array([0, 1, 2, 5, 9])
    expected = logsumexp(stats.poisson(rate).logpmf(y), axis=0) - math.log(len(rate))
    np.testing.assert_allclose(prediction.log_prob(y), expected)
    np.testing.assert_allclose(prediction.log_prob(y.astype(float)), expected)


def test_poisson_quantile_is_near_the_mixtures():
    rates = torch.tensor([[1.0, 20.0]] * 10_000).view(1, -1, 1)
    prediction = Prediction({"rate": rates}, dist.Poisson, "counts")
    for q in (0.2, 0.4, 0.6, 0.9):
        value = prediction.quantile(q).item()
        cdf = 0.5 * (stats.poisson(1).cdf(value) + stats.poisson(20).cdf(value))
        below = 0.5 * (stats.poisson(1).cdf(value - 1) + stats.poisson(20).cdf(value - 1))
        margin = 5 * (q * (1 - q) / 20_000) ** 0.5
        assert value == int(value)
        assert below - margin < q < cdf + margin


def test_quantiles_of_counts_do_not_need_many_draws():
    prediction = Prediction({"rate": torch.tensor([[[3.0, 40.0]]])}, dist.Poisson, "counts")
    margin = 5 * (0.025 * 0.975 / 1000) ** 0.5
    for ends, rate in zip(torch.stack(prediction.interval(), 1).tolist(), (3.0, 40.0), strict=True):
        for end, q in zip(ends, (0.025, 0.975), strict=True):
            assert stats.poisson(rate).cdf(end - 1) < q + margin
            assert stats.poisson(rate).cdf(end) > q - margin


@pytest.mark.parametrize("family", ["normal", "classes", "counts"])
def test_pooled_chains_are_one_mixture(family):
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(3, 4, 5, 2, generator=generator).double()
    given = {
        # A scale by chain that draws share, and one for all.
        "normal": (
            {"loc": loc, "scale": torch.tensor([0.3, 1.0, 2.0]).double().view(3, 1, 1, 1)},
            dist.Normal,
            "regression",
        ),
        "classes": ({"logits": loc}, dist.Categorical, "classification"),
        "counts": ({"rate": loc.exp()}, dist.Poisson, "counts"),
    }[family]
    prediction = Prediction(*given)
    pooled = prediction.pooled
    assert pooled.shape == (1, 12, *prediction.shape[2:])
    y = torch.ones(prediction.shape[2:])
    torch.testing.assert_close(pooled.log_prob(y), prediction.log_prob(y))
    draws = prediction.draws
    assert torch.equal(pooled.draws, draws.reshape(1, 12, *draws.shape[2:]))
    for name in ("probs", "mutual_information") if family == "classes" else ("mean", "epistemic", "aleatoric"):
        torch.testing.assert_close(getattr(pooled, name), getattr(prediction, name))
    if family == "normal":
        torch.testing.assert_close(pooled.quantile(0.3), prediction.quantile(0.3))
    assert all(torch.equal(value, pooled.parameters[name]) for name, value in pooled.pooled.parameters.items())
    shared = Prediction({"loc": loc, "scale": torch.ones(1, 1, 1, 1)}, dist.Normal, "regression").pooled
    assert shared.parameters["scale"].shape == (1, 1, 1, 1)  # not expanded


def test_categorical_statistics():
    prediction = categorical()
    (logits,) = arrays(prediction, "logits")
    probs = softmax(logits, -1)
    mean = probs.mean(0)
    np.testing.assert_allclose(prediction.probs, mean)
    np.testing.assert_allclose(prediction.entropy, entropy(mean))
    np.testing.assert_allclose(prediction.mutual_information, entropy(mean) - entropy(probs).mean(0))
    np.testing.assert_array_equal(prediction.classes, mean.argmax(-1))
    np.testing.assert_allclose(prediction.draws.flatten(0, 1), probs)
    y = np.array([0, 3, 1, 2, 2])
    for given in (y, torch.tensor(y), torch.tensor(y)[:, None], torch.tensor(y).float()):
        np.testing.assert_allclose(prediction.log_prob(given), np.log(mean[np.arange(N), y]))
    assert prediction.shape == (CHAINS, DRAWS, N)
    assert len(prediction) == N


def test_bernoulli_statistics():
    prediction = bernoulli()
    (logits,) = arrays(prediction, "logits")
    p = 1 / (1 + np.exp(-logits))
    probs = np.stack([1 - p, p], -1)
    np.testing.assert_allclose(prediction.probs, probs.mean(0))
    np.testing.assert_allclose(prediction.entropy, entropy(probs.mean(0)))
    np.testing.assert_allclose(prediction.mutual_information, entropy(probs.mean(0)) - entropy(probs).mean(0))
    np.testing.assert_allclose(prediction.mean, p.mean(0))
    np.testing.assert_allclose(prediction.variance, p.mean(0) * (1 - p.mean(0)))
    np.testing.assert_array_equal(prediction.classes, p.mean(0) > 0.5)
    y = np.array([0.0, 1, 1, 0, 1])
    np.testing.assert_allclose(prediction.log_prob(y), np.log(np.where(y == 1, p.mean(0), 1 - p.mean(0))))


@pytest.mark.parametrize("size", [17.0, 40.0, 80.0])
def test_a_sure_yes_is_as_sure_as_a_sure_no(size):
    yes, no = (
        Prediction({"logits": torch.full((1, 2, 1), each)}, dist.Bernoulli, "classification") for each in (size, -size)
    )
    p = math.exp(-size) / (1 + math.exp(-size))
    np.testing.assert_allclose(yes.probs, [[p, 1 - p]], rtol=1e-5)
    assert torch.equal(yes.probs, no.probs.flip(-1))
    assert yes.entropy.item() == no.entropy.item() > 0
    wide = yes.double()
    assert wide.probs.dtype == torch.float64
    assert wide.probs[0, 0].item() == pytest.approx(p, rel=1e-12)
    of_probs = Prediction({"probs": torch.tensor([[[0.25]]])}, dist.Bernoulli, "classification")
    assert of_probs.probs.tolist() == [[0.75, 0.25]]
    each = {"loc": torch.tensor([[[size, -size]]]), "output_variance": torch.full((1, 1, 2), 0.5)}
    moments = MomentPrediction(each, BernoulliTargets, "classification")
    assert moments.probs[0].tolist() == pytest.approx(moments.probs[1].flip(-1).tolist(), rel=1e-4)
    assert moments.entropy[0].item() == pytest.approx(moments.entropy[1].item(), rel=1e-4)
    assert moments.entropy[0].item() > 0


def test_several_yes_no_targets():
    prediction = bernoulli((CHAINS, DRAWS, N, 2))
    (logits,) = arrays(prediction, "logits")
    p = 1 / (1 + np.exp(-logits))
    assert prediction.probs.shape == (N, 2, 2)
    np.testing.assert_allclose(prediction.probs[..., 1], p.mean(0))
    y = np.array([[0.0, 1], [1, 1], [0, 0], [1, 0], [0, 1]])
    joint = np.where(y == 1, p, 1 - p).prod(-1)  # independent given a draw, not in the mixture
    np.testing.assert_allclose(prediction.log_prob(y), np.log(joint.mean(0)))


def test_labels_of_pixels():
    prediction = categorical((CHAINS, DRAWS, N, 2, 3, 4))
    (logits,) = arrays(prediction, "logits")
    probs = softmax(logits, -1)
    assert prediction.shape == (CHAINS, DRAWS, N, 2, 3)
    np.testing.assert_allclose(prediction.probs, probs.mean(0))
    y = rng().integers(0, 4, (N, 2, 3))
    joint = np.take_along_axis(probs, np.broadcast_to(y, probs.shape[:-1])[..., None], -1)[..., 0].prod((-2, -1))
    np.testing.assert_allclose(prediction.log_prob(y), np.log(joint.mean(0)))


def test_mutual_information_from_none_to_all():
    same = Prediction({"logits": torch.randn(1, 1, 4, 3).expand(2, 5, 4, 3)}, dist.Categorical, "classification")
    assert same.mutual_information.abs().max() < 1e-6
    assert (same.mutual_information >= 0).all()
    sure = 100.0 * torch.eye(3).view(1, 3, 1, 3)  # three draws, each sure of another class
    split = Prediction({"logits": sure}, dist.Categorical, "classification")
    assert split.mutual_information.item() == pytest.approx(math.log(3), rel=1e-6)
    assert split.entropy.item() == pytest.approx(math.log(3), rel=1e-6)


SMALL = {
    "normal": (normal((CHAINS, DRAWS, 37)), ["mean", "epistemic", "aleatoric", "variance"]),
    "targets": (normal((CHAINS, DRAWS, 37, 2)), ["mean", "epistemic", "aleatoric", "variance"]),
    "categorical": (categorical((CHAINS, DRAWS, 37, 4)), ["probs", "classes", "entropy", "mutual_information"]),
    "bernoulli": (bernoulli((CHAINS, DRAWS, 37)), ["probs", "mean", "epistemic", "mutual_information"]),
    "poisson": (poisson((CHAINS, DRAWS, 37)), ["mean", "epistemic", "aleatoric"]),
}


@pytest.mark.parametrize("block", [1, 30, 100])
@pytest.mark.parametrize("name", SMALL)
def test_blocks_change_nothing(monkeypatch, name, block):
    prediction, statistics = SMALL[name]
    y = prediction.sample()[0, 0]
    functions = {each: lambda each=each: getattr(prediction, each) for each in statistics}
    functions["log_prob"] = lambda: prediction.log_prob(y)
    if prediction.task == "regression":
        functions |= {"cdf": lambda: prediction.cdf(y), "quantile": lambda: prediction.quantile(0.2)}
    whole = {each: function() for each, function in functions.items()}
    monkeypatch.setattr(module, "_BLOCK", block)
    for each, function in functions.items():
        torch.testing.assert_close(function(), whole[each], rtol=1e-12, atol=1e-12, msg=each)


class Largest(TorchDispatchMode):
    """The largest tensor that an operation makes; views are free."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.size = max(self.size, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize(
    ("prediction", "statistics"),
    [
        (categorical((2, 50, 100, 10)), ["probs", "entropy", "mutual_information"]),
        (bernoulli((2, 50, 1000)), ["probs", "mean", "epistemic", "aleatoric"]),
        (normal((2, 50, 1000), shared=False), ["mean", "epistemic", "aleatoric"]),
    ],
)
def test_temporaries_are_as_small_as_blocks(monkeypatch, prediction, statistics):
    monkeypatch.setattr(module, "_BLOCK", 5000)
    y = prediction.sample()[0, 0]
    for name in statistics:
        with Largest() as largest:
            getattr(prediction, name)
        assert largest.size <= 2 * 5000, name
    with Largest() as largest:
        prediction.log_prob(y)
        len(prediction)
        repr(prediction)
    assert largest.size <= 2 * 5000


def test_samples_follow_the_mixture():
    generator = rng(3)
    loc, scale = generator.normal(0, 3, (2, 10_000, 1)), generator.uniform(0.2, 1, (2, 10_000, 1))
    prediction = Prediction({"loc": torch.tensor(loc), "scale": torch.tensor(scale)}, dist.Normal, "regression")
    y = prediction.sample()
    assert y.shape == (2, 10_000, 1)
    # One target of each component: at least as regular as independent draws of the mixture.
    grid = np.quantile(loc, np.linspace(0.01, 0.99, 50))
    mixture = stats.norm(loc.ravel(), scale.ravel()).cdf(grid[:, None]).mean(1)
    empirical = (y.numpy().ravel() <= grid[:, None]).mean(1)
    assert np.abs(empirical - mixture).max() < 5 * 0.5 / 20_000**0.5
    # Each target belongs to its own component.
    standard = (y - prediction.parameters["loc"]) / prediction.parameters["scale"]
    assert stats.kstest(standard.flatten(), stats.norm.cdf).pvalue > 1e-6


@pytest.mark.parametrize("prediction", [normal(), poisson(), categorical(), bernoulli(), normal((2, 3, 5, 2))])
def test_samples_by_seed(prediction):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second, third = prediction.sample(4), prediction.sample(4), prediction.sample(5)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == prediction.shape
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("prediction", [normal(), poisson(), categorical(), bernoulli()])
def test_one_chain(prediction):
    for index in range(CHAINS):
        alone = prediction.chain(index)
        assert alone.shape == (1, DRAWS, N)
        assert torch.equal(alone.draws, prediction.draws[index : index + 1])
    for index in (-1, CHAINS):
        with pytest.raises(IndexError, match=f"no chain {index}; chains are 0 to 1"):
            prediction.chain(index)


def test_chains_are_averaged_in_density_not_in_its_logarithm():
    prediction = normal()
    y = torch.zeros(N)
    each = torch.stack([prediction.chain(c).log_prob(y) for c in range(CHAINS)])
    torch.testing.assert_close(prediction.log_prob(y), each.logsumexp(0) - math.log(CHAINS))


def test_gradients_pass_through_statistics():
    loc = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    scale = (torch.rand(2, 3, 1, dtype=torch.float64) + 0.5).requires_grad_()

    def all_statistics(loc, scale):
        prediction = Prediction({"loc": loc, "scale": scale}, dist.Normal, "regression")
        return prediction.mean, prediction.variance, prediction.log_prob(torch.zeros(4))

    assert torch.autograd.gradcheck(all_statistics, (loc, scale))


def parts_of(prediction, sizes):
    start = 0
    for size in sizes:
        part = {name: value[:, start : start + size] for name, value in prediction.parameters.items()}
        yield Prediction(part, prediction.family, prediction.task)
        start += size


@pytest.mark.parametrize("sizes", [(10,), (3, 7), (1,) * 10, (4, 4, 2)])
@pytest.mark.parametrize("make", [normal, poisson, categorical, bernoulli])
def test_summary_of_parts_is_that_of_the_whole(make, sizes):
    shape = (2, 10, N, 4) if make is categorical else (2, 10, N)
    prediction = make(shape)
    summary = summarize(parts_of(prediction, sizes))
    assert isinstance(summary, Summary)
    assert summary.num_samples == 20
    names = ["mean", "epistemic", "aleatoric", "variance"]
    others = ["probs", "entropy", "mutual_information"]
    if prediction.task == "classification":
        names, others = others, names
    for name in names:
        torch.testing.assert_close(getattr(summary, name), getattr(prediction, name), rtol=1e-9, atol=1e-12)
    for name in others:
        assert getattr(summary, name) is None


def test_repr_says_what_it_holds():
    assert repr(normal()) == "Prediction(Normal, 2 chains x 3 draws of [5] targets)"
    assert repr(categorical()) == "Prediction(Categorical, 2 chains x 3 draws of [5] targets)"


@pytest.mark.parametrize("name", ["mean", "variance", "epistemic", "aleatoric", "std"])
def test_classes_have_no_moments(name):
    with pytest.raises(TypeError, match="classes have no mean or variance: use probs"):
        getattr(categorical(), name)


@pytest.mark.parametrize("name", ["probs", "classes", "entropy", "mutual_information"])
@pytest.mark.parametrize("prediction", [normal(), poisson()])
def test_numbers_have_no_classes(prediction, name):
    with pytest.raises(TypeError, match="targets are not classes"):
        getattr(prediction, name)


@pytest.mark.parametrize("prediction", [categorical(), bernoulli()])
def test_classes_have_no_quantiles(prediction):
    with pytest.raises(TypeError, match="targets have no quantile"):
        prediction.quantile(0.5)
    with pytest.raises(TypeError, match="targets have no cdf"):
        prediction.cdf(torch.zeros(N))


def test_counts_have_no_cdf():
    with pytest.raises(TypeError, match="Poisson targets have no cdf"):
        poisson().cdf(torch.zeros(N))


@pytest.mark.parametrize("q", [0, 1, -0.1, 2, math.nan])
def test_probabilities_out_of_range(q):
    with pytest.raises(ValueError, match=r"q must be in \(0, 1\)"):
        normal().quantile(q)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\)"):
        normal().interval(q)


@pytest.mark.parametrize(
    ("prediction", "shape"), [(normal(), (4,)), (normal(), (5, 2)), (normal((2, 3, 5, 2)), (5,)), (categorical(), ())]
)
def test_targets_of_another_shape(prediction, shape):
    with pytest.raises(ValueError, match=r"y must have the prediction's shape \[5"):
        prediction.log_prob(torch.zeros(shape))
