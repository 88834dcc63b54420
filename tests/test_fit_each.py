"""`fit_each`: several tasks as one stack are what they are one by one."""

from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from fitting import N, Record, X, Y, gen, network
from statistical import assert_mean
from torch import nn

from bnnzoo import BayesianNetwork, Task, fit, fit_each, guides, likelihoods, models, objectives, priors
from bnnzoo._vectorize import Pair
from bnnzoo.chains import DivergenceWarning, chain_seed
from bnnzoo.data import as_dataset
from bnnzoo.together import together

SETTINGS = {"epochs": 4, "lr": 0.01, "batch_size": 10, "seed": 3}


def task(number, guide=guides.Map, prior=None, likelihood=None, net=None, rows=N, scale=1.0):
    """One of several: data, their scale and the network's values are the task's own."""
    x, y = X + 0.3 * number, (1 + number) * Y + torch.randn(N, generator=gen(number))
    net = network(seed=number) if net is None else net
    bnn = BayesianNetwork(net, likelihood or likelihoods.Gaussian(0.3), prior or priors.Normal(0.0, scale))
    return Task(bnn, guide(bnn), as_dataset((x[:rows], y[:rows]), standardize=True))


def assert_same(posteriors, tasks, settings=SETTINGS, **also):
    """Each posterior is the one that `fit` finds with the task's seed, up to rounding."""
    for number, (found, each) in enumerate(zip(posteriors, tasks, strict=True)):
        seed = chain_seed(settings["seed"], number)
        own = {name: value[number] if name == "validation" else value for name, value in also.items()}
        expected = fit(each.bnn, each.guide, each.data, **{**settings, **own, "seed": seed})
        for name, values in expected.history.items():
            # The stack goes on until the last chain of the last task has stopped.
            np.testing.assert_allclose(found.history[name][:, : values.shape[1]], values, rtol=2e-4)
        mine, theirs = found.state(), expected.state()
        for part, other in zip(mine, theirs, strict=True):
            assert part.keys() == other.keys()
            for name, value in other.items():
                torch.testing.assert_close(part[name], value, rtol=2e-3, atol=2e-4)
        x = each.data.x
        a, b = (p.predict(x, 5, seed=1) for p in (found, expected))
        torch.testing.assert_close(a.parameters["loc"], b.parameters["loc"], rtol=2e-3, atol=2e-3)


# Point guides draw nothing in training: together and one by one they must agree.
@pytest.mark.parametrize(
    "prior",
    [
        lambda s: priors.Normal(0.1, s),
        lambda s: dist.Laplace(0.0, s),
        lambda s: dist.StudentT(3.0, 0.0, s),
        lambda s: dist.Cauchy(0.0, s),
        lambda s: {"0.*": priors.Normal(0.0, s), "*": priors.Normal(0.0, 1.0)},
        lambda s: {"0.*": priors.Normal(0.0, s), "*": dist.Laplace(0.0, 1.0)},
    ],
    ids=["normal", "laplace", "student-t", "cauchy", "two-scales", "two-families"],
)
def test_tasks_of_other_priors_and_data_are_what_they_are_alone(prior):
    tasks = [task(number, prior=prior(scale)) for number, scale in enumerate((1.0, 0.05, 0.3))]
    assert_same(fit_each(tasks, chains=2, **SETTINGS), tasks, chains=2)


def test_one_prior_for_all_needs_no_stacked_priors():
    tasks = [task(number) for number in range(2)]
    pairs = [Pair(each.bnn, each.guide).copy() for each in tasks]
    states = [({"a": torch.zeros(1)}, {}) for _ in pairs]
    assert together(pairs, states)[0].model.stacked_priors is None
    assert_same(fit_each(tasks, **SETTINGS), tasks)


@pytest.mark.parametrize(
    "settings",
    [
        {"adversarial": 0.1},
        {"clip_norm": 5.0},
        {"objective": objectives.ELBO(kl_weight=objectives.KLAnnealing(3))},
        {"scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)},
        {"optimizer": partial(torch.optim.SGD, momentum=0.9), "lr": 1e-5},
    ],
    ids=["adversarial", "clipped", "annealed", "scheduled", "sgd"],
)
def test_settings_are_those_of_fit(settings):
    tasks = [task(number, scale=0.2 + number) for number in range(2)]
    settings = {**SETTINGS, **settings}
    assert_same(fit_each(tasks, **settings), tasks, settings)


def test_images_are_attacked_by_their_own_tasks_range():
    def images(number):
        x, labels = (1 + 5 * number) * torch.rand(20, 1, 4, 4, generator=gen(number)), torch.arange(20) % 2
        with torch.random.fork_rng():
            torch.manual_seed(number)
            net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
        bnn = BayesianNetwork(net, likelihoods.Categorical())
        return Task(bnn, guides.Map(bnn), (x, labels))

    tasks, settings = [images(number) for number in range(2)], {**SETTINGS, "adversarial": 0.2}
    found = fit_each(tasks, **settings)
    for number, each in enumerate(tasks):
        alone = fit(each.bnn, each.guide, each.data, **{**settings, "seed": chain_seed(3, number)})
        np.testing.assert_allclose(found[number].history["loss"], alone.history["loss"], rtol=2e-4)


def test_each_task_is_validated_and_stopped_on_its_own_data():
    tasks = [task(number) for number in range(2)]
    held_out = [task(number).data[:15] for number in (4, 5)]
    settings = {**SETTINGS, "epochs": 8, "lr": 0.1, "patience": 1}
    found = fit_each(tasks, chains=2, validation=held_out, **settings)
    assert_same(found, tasks, settings, chains=2, validation=held_out)
    assert not np.allclose(found[0].history["validation"], found[1].history["validation"])


def test_a_fraction_is_held_out_of_each_task():
    tasks = [task(number) for number in range(2)]
    found = fit_each(tasks, validation=0.25, **SETTINGS)
    assert_same(found, tasks, SETTINGS, validation=[0.25, 0.25])
    assert found[0].info["num_data"] == 30


def test_what_a_guide_collects_is_of_its_own_task():
    def batch_norm(number):
        torch.manual_seed(number)
        return task(number, guides.BatchNorm, net=models.MLP(3, 1, (5,), batch_norm=True), scale=0.1 + number)

    with torch.random.fork_rng():
        tasks = [batch_norm(number) for number in range(2)]
    assert_same(fit_each(tasks, chains=2, **SETTINGS), tasks, chains=2)
    # Laplace takes the curvature under its task's own prior.
    tasks = [task(number, guides.Laplace, scale=0.1 + number) for number in range(2)]
    assert_same(fit_each(tasks, **SETTINGS), tasks)


def losses_at_start(posterior):
    """The loss of each epoch of a fit that hardly moves, [epoch, 1]."""
    return torch.as_tensor(posterior.history["loss"]).double().T.reshape(-1, 1)


@pytest.mark.parametrize("guide", [guides.MeanField, guides.Dropout], ids=["mean-field", "dropout"])
def test_random_guides_see_their_own_priors_scales_and_rates(guide):
    varying = [
        {"init_scale": 0.05} if guide is guides.MeanField else {"rate": 0.05},
        {"init_scale": 0.4} if guide is guides.MeanField else {"rate": 0.6},
    ]
    tasks = [
        task(0, partial(guide, **options), scale=scale, likelihood=likelihoods.Gaussian(noise))
        for options, scale, noise in zip(varying, (1.0, 0.2), (0.3, 1.5), strict=True)
    ]
    settings = {"epochs": 150, "lr": 1e-12, "batch_size": N}
    found = fit_each(tasks, chains=2, **settings)
    for posterior, each in zip(found, tasks, strict=True):
        # The first chain starts at the same values as the only chain of a fit.
        alone = losses_at_start(fit(each.bnn, each.guide, each.data, **{**settings, "epochs": 400}))
        mine = torch.as_tensor(posterior.history["loss"][0]).double()[:, None]
        error = (mine.var(0) / len(mine) + alone.var(0) / len(alone)).sqrt()
        assert (mine.mean(0) - alone.mean(0)).abs() < 6 * error  # losses of 150 epochs: t, not quite normal
    assert abs(found[0].history["loss"][0].mean() / found[1].history["loss"][0].mean() - 1) > 0.1
    if guide is guides.Dropout:
        for posterior, rate in zip(found, (0.05, 0.6), strict=True):
            torch.testing.assert_close(guides_rate(posterior), torch.full((2,), rate))


def guides_rate(posterior):
    return next(iter(posterior.guide.rates(posterior).values()))


def test_a_task_predicts_and_is_saved_like_any_posterior(tmp_path):
    from bnnzoo import load

    tasks = [task(number, guides.MeanField, scale=0.5 + number) for number in range(2)]
    for found, each in zip(fit_each(tasks, chains=2, **SETTINGS), tasks, strict=True):
        found.save(tmp_path / "task.bnn")
        again = load(tmp_path / "task.bnn")
        a, b = found.predict(X, 3, seed=2), again.predict(X, 3, seed=2)
        assert torch.equal(a.parameters["loc"], b.parameters["loc"])
        assert found.standardization is each.data.standardization
        assert "stacked" not in " ".join(name for part in found.state() for name in part)
        prior = found.bnn.priors["0.weight"]
        assert prior.scale == each.bnn.priors["0.weight"].scale


def test_draws_of_a_mean_field_are_those_of_its_own_task():
    # Trained to the end: noise-free linear data of other slopes, so each task's mean is its own slope.
    slopes = (1.0, -2.0)

    def line(slope):
        bnn = BayesianNetwork(nn.Linear(1, 1), likelihoods.Gaussian(0.1), priors.Normal(0.0, 10.0))
        x = torch.linspace(-1, 1, 50)[:, None]
        return Task(bnn, guides.MeanField(bnn), (x, slope * x))

    found = fit_each([line(slope) for slope in slopes], epochs=300, lr=0.05, batch_size=50)
    for posterior, slope in zip(found, slopes, strict=True):
        draws = posterior.sample(2000, seed=1)["weight"].reshape(-1, 1).double()
        # The optimum's mean is the slope but for the prior's pull, 1e-6; Adam ends within a third of the scale of it.
        assert abs(draws.mean() - slope) < 0.02
        assert_mean(draws, draws.mean(0, keepdim=True), 1)


def test_a_checkpoint_resumes_all_tasks(tmp_path):
    tasks = [task(number, guides.MeanField, scale=0.5 + number) for number in range(2)]
    whole = fit_each(tasks, chains=2, **SETTINGS)

    def die(progression):
        if progression.epoch == 2:
            raise KeyboardInterrupt

    path = tmp_path / "fit.ckpt"
    with pytest.raises(KeyboardInterrupt):
        fit_each(tasks, chains=2, checkpoint=path, callback=die, **SETTINGS)
    resumed = fit_each(tasks, chains=2, checkpoint=path, **SETTINGS)
    for a, b in zip(whole, resumed, strict=True):
        for mine, theirs in zip(a.state(), b.state(), strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    other = [task(number, guides.MeanField, scale=0.6 + number) for number in range(2)]
    with pytest.raises(ValueError, match="its prior is"):
        fit_each(other, chains=2, checkpoint=path, **SETTINGS)


def test_a_callback_sees_all_chains():
    record = Record()
    fit_each([task(number) for number in range(3)], chains=2, callback=record, **SETTINGS)
    assert record.seen[-1][1]["loss"].shape == (6, 4)
    assert len(record.seen[-1][2]["guide.loc"]) == 6


def test_a_task_that_diverges_is_named_and_touches_no_other():
    def poisoned(progression):
        if progression.epoch == 1:
            progression.parameters["guide.loc"][3] = float("nan")

    tasks = [task(number) for number in range(2)]
    with pytest.warns(DivergenceWarning, match="chain 1 of task 1 diverged in epoch 2"):
        found = fit_each(tasks, chains=2, callback=poisoned, **SETTINGS)
    assert [posterior.info["diverged"] for posterior in found] == [[], [1]]
    fine = fit_each(tasks, chains=2, **SETTINGS)
    np.testing.assert_allclose(found[0].history["loss"], fine[0].history["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: task(1, net=network(out=1).append(nn.Tanh())), "task 1 differs from task 0 in its network"),
        (lambda: task(1, net=nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 1))), "in its network"),
        (lambda: task(1, likelihood=likelihoods.Gaussian()), "in its likelihood"),
        (lambda: task(1, prior=dist.Laplace(0.0, 1.0)), "in its priors"),
        (lambda: task(1, guides.MeanField), "in its guide, MeanField instead of Map"),
        (lambda: task(1, rows=30), "task 1 has inputs \\[30, 3\\]"),
        (lambda: (X, Y), "task 1 must be a bnnzoo.Task"),
    ],
    ids=["layers", "width", "likelihood", "prior", "guide", "rows", "no-task"],
)
def test_tasks_that_are_not_alike_are_refused(other, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fit_each([task(0), other()], **SETTINGS)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (partial(guides.MeanField, sampling="local"), partial(guides.MeanField, sampling="dense")),
        (partial(guides.Dropout, noise="gaussian"), partial(guides.Dropout, noise="bernoulli")),
        (
            partial(guides.Dropout, rate={"0.weight": 0.5, "*": 0.0}),
            partial(guides.Dropout, rate={"2.weight": 0.5, "*": 0.0}),
        ),
    ],
    ids=["sampling", "noise", "dropped-layer"],
)
def test_guides_of_other_options_are_refused(first, second):
    with pytest.raises(ValueError, match="in its guide's options"):
        fit_each([task(0, first), task(1, second)], **SETTINGS)


def test_other_mistakes():
    with pytest.raises(ValueError, match="there is no task"):
        fit_each([])
    with pytest.raises(TypeError, match="epoch is no setting of fit_each"):
        fit_each([task(0)], epoch=3)
    with pytest.raises(ValueError, match="validation must have data for each of the 2 tasks, not 1"):
        fit_each([task(0), task(1)], validation=[task(2).data])
    mixtures = [task(number, prior=priors.ScaleMixture(0.5, 1.0, scale)) for number, scale in enumerate((0.1, 0.2))]
    with pytest.raises(ValueError, match="in its priors"):
        fit_each(mixtures, **SETTINGS)
