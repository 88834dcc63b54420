"""The MNF paper's entries: the published numbers, what is fitted and to what, and the pieces that measure."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyro.distributions import Normal

from bnnzoo import guides, models
from bnnzoo.reproduce import Context, mnf_errors, mnf_lenet, mnf_toy
from bnnzoo.reproduce.mnf_lenet import METHODS, PAPER, TASKS, images, posterior_of, size_of

WEIGHTS = ("layers.0.weight", "layers.3.weight", "layers.7.weight", "layers.9.weight")


@pytest.fixture
def context(tmp_path):
    return Context("smoke", tmp_path, quiet=True)


def test_published_numbers():
    for task in TASKS.values():
        assert tuple(task.errors) == PAPER
        assert len(task.pruned) == len(WEIGHTS)
    mnist, cifar = (task.errors for task in TASKS.values())
    assert [mnist[name] for name in PAPER] == [0.6, 0.5, 0.7, 0.9, 0.9, 0.7]
    assert [cifar[name] for name in PAPER] == [24, 16, 21, 22, 23, 16]


def test_at_the_scale_of_the_paper_all_is_as_in_the_paper(tmp_path):
    context = Context("paper", tmp_path)
    for name, members, adversarial in (("mnist", 10, 0.25), ("cifar5", 5, 0.1)):
        size = size_of(context, name, ensemble=True)
        assert (size.members, size.adversarial, size.draws, size.hurried) == (members, adversarial, 100, False)
        network = models.LeNet(*size.network)
        filters, hidden = ((20, 50), 500) if name == "mnist" else ((192, 192), 1000)
        assert (network.filters, network.hidden) == (filters, hidden)


@pytest.mark.parametrize("task", TASKS)
def test_images_are_of_the_classes_that_are_not_hidden(context, task):
    for part in images(context, task):
        assert set(part.y.tolist()) == set(range(TASKS[task].classes))
        assert part.x.shape[1:] == (TASKS[task].network[0], 28, 28)
        assert models.LeNet(*size_of(context, task).network)(part.x[:2]).shape == (2, TASKS[task].classes)


@pytest.fixture
def planned(monkeypatch):
    """What `posterior_of` would have trained: path, model, guide and settings."""
    seen = []

    def trained(path, bnn, guide, train, **settings):
        seen.append(SimpleNamespace(path=path, bnn=bnn, guide=guide, **settings))

    monkeypatch.setattr(mnf_lenet, "trained", trained)
    return seen


@pytest.mark.parametrize(("task", "bound"), [("mnist", 0.5), ("cifar5", 0.4)])
def test_a_lenet_is_fitted_as_its_method_says(context, planned, task, bound):
    for method in PAPER:
        posterior_of(context, task, method, None, size_of(context, task))
    _, dropout, _, gaussian, log_uniform, mnf = planned
    kinds = (guides.Map, guides.Dropout, guides.Map, guides.MeanField, guides.MeanField, guides.MNF)
    assert tuple(type(plan.guide) for plan in planned) == kinds
    assert [plan.chains for plan in planned] == [1, 1, 2, 1, 1, 1]
    assert mnf.guide.max_scale == bound
    rates = {name: rate.item() for name, rate in dropout.guide.rates().items()}
    assert rates == dict.fromkeys(WEIGHTS[1:], 0.5)
    assert isinstance(gaussian.bnn.priors["layers.9.weight"], Normal)
    assert not isinstance(log_uniform.bnn.priors["layers.9.weight"], Normal)
    assert [plan.path.name for plan in planned] == [f"lenet-{task}-{method}.bnn" for method in PAPER]
    assert all(plan.path.parent == context.fits for plan in planned)
    same = [plan.bnn.network.state_dict()["layers.9.weight"] for plan in planned]
    assert all(torch.equal(same[0], other) for other in same)


def test_the_ensembles_members_see_adversarial_examples(tmp_path, planned):
    paper = Context("paper", tmp_path)
    for method in ("ensemble", "map"):
        posterior_of(paper, "mnist", method, None, size_of(paper, "mnist", METHODS[method].ensemble))
    ensemble, single = planned
    assert (ensemble.chains, ensemble.adversarial) == (10, 0.25)
    assert (single.chains, single.adversarial, single.lr, single.scheduler) == (1, None, 1e-3, None)
    assert single.objective.kl_weight == 1.0


def test_every_weight_that_the_paper_prunes_has_its_share(context):
    shares = mnf_errors.pruned(context).values
    assert all(tuple(found) == WEIGHTS for found in shares.values())


def test_points_are_drawn_once(context):
    train, size = images(context, "mnist")[0], size_of(context, "mnist")
    assert mnf_errors._draws(posterior_of(context, "mnist", "map", train, size), 20) == 1
    assert mnf_errors._draws(posterior_of(context, "mnist", "dropout", train, size), 20) == 20


def test_widths_of_bands_by_range():
    x = np.linspace(-6.0, 6.0, 121)  # at every tenth: 79 inside, 42 from 4 on
    std = np.stack([np.where(np.abs(x) < 4, 2.0, 5.0), np.full(121, 1e3), np.full(121, 5.0), np.full(121, 5.0)])
    found = mnf_toy.widths(x, np.stack([x**3 * (x > 0), 0 * x, x**3 + 15.1, x**3 + 14.9]), std)
    assert found["inside"] == pytest.approx([12.0, 6e3, 30.0, 30.0])
    assert found["outside"] == pytest.approx([30.0, 6e3, 30.0, 30.0])
    assert found["held"] == [0.5, 1.0, 0.0, 1.0]


def test_the_toy_knows_its_noise(context):
    posterior = mnf_toy._fitted(context, "mean-field")
    prediction = posterior.predict(torch.zeros(1, 1), num_samples=2, seed=0)
    torch.testing.assert_close(prediction.parameters["scale"].flatten()[0], torch.tensor(3.0))
