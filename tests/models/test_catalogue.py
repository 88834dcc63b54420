"""The catalogue: every entry builds, takes two epochs, survives a file; factories size networks by the data."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import bnnzoo
from bnnzoo import data, guides, likelihoods, models, objectives
from bnnzoo.data import Dataset, Split
from bnnzoo.models.entry import gaussian, lenet, mlp


def small_split(name: str) -> Split:
    """A few random rows with the shapes of a known data set, which itself may not be on the machine."""
    about = data.info(name)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(24, *about.input_shape, generator=generator)
    if about.task == "classification":
        y = torch.arange(24) % len(about.class_names)
    else:
        y = 10.0 * torch.randn(24, generator=generator)
    dataset = Dataset(x, y, task=about.task, name=name, class_names=about.class_names)
    return dataset.split(test_size=4, seed=0, stratify=False)


def brief(entry: models.Entry) -> dict:
    """Settings that make a fit short."""
    if entry.guide is None:
        return {"num_samples": 4, "warmup_steps": 3, "max_tree_depth": 3}
    return {"epochs": 2, "batch_size": 10, "chains": min(entry.training.get("chains", 1), 2)}


def run(entry: models.Entry, split: Split) -> bnnzoo.Posterior:
    bnn, guide, objective, settings = entry.build(split, **brief(entry))
    if guide is None:
        return bnnzoo.sample(bnn, split.train, seed=0, progress=False, **settings)
    return bnnzoo.fit(bnn, guide, split.train, objective=objective, seed=0, progress=False, **settings)


_LARGE = {"mcbn/resnet32-cifar10"}  # a minute


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in _LARGE)) for name in models.catalogue]
)
def test_every_entry_builds_trains_predicts_and_saves(name, tmp_path):
    entry = models.catalogue[name]
    assert entry.name == name
    split = small_split(entry.data)
    posterior = run(entry, split)
    prediction = posterior.predict(split.test.x, num_samples=2)
    assert bool(torch.isfinite(prediction.log_prob(split.test.y)).all())
    posterior.save(tmp_path / "entry.bnn")
    again = bnnzoo.load(tmp_path / "entry.bnn").predict(split.test.x, num_samples=2)
    torch.testing.assert_close(again.draws, prediction.draws, rtol=0, atol=0)


@pytest.mark.parametrize("name", models.catalogue)
def test_every_entry_says_what_it_is(name):
    entry = models.catalogue[name]
    assert entry.data in data.names()
    assert entry.description
    assert entry.reference
    family, _, rest = name.partition("/")
    assert family
    assert rest
    assert (family == "nuts") == (entry.guide is None)


def test_catalogue_names_are_unique_and_cannot_be_overwritten():
    from bnnzoo.models.catalogue import ENTRIES

    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES) == len(models.catalogue)
    with pytest.raises(TypeError, match="does not support item assignment"):
        models.catalogue["mine"] = ENTRIES[0]


def test_builds_are_independent():
    entry = models.catalogue["mean-field/uci-mlp"]
    first, second = entry.build(small_split("concrete")), entry.build(small_split("concrete"))
    first.training["epochs"] = 1
    assert second.training["epochs"] == entry.training["epochs"] != 1
    assert first.bnn is not second.bnn
    assert first.guide is not second.guide


def test_schedules_follow_the_number_of_epochs():
    split = small_split("concrete")
    _, _, objective, settings = models.catalogue["mean-field/uci-mlp"].build(split, epochs=40)
    assert settings["epochs"] == 40
    assert [objective.kl_weight(epoch) for epoch in (0, 5, 10, 40)] == [0.0, 0.5, 1.0, 1.0]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = settings["scheduler"](optimizer)
    assert scheduler.T_max == 40
    own = object()
    assert models.catalogue["mean-field/uci-mlp"].build(split, scheduler=own).training["scheduler"] is own


def test_the_weight_of_the_divergence_is_the_entry_s_under_any_objective():
    split, entry = small_split("concrete"), models.catalogue["mean-field/uci-mlp"]
    tempered = replace(entry, objective=objectives.Predictive, kl_weight=0.5)
    objective = tempered.build(split, epochs=40).objective
    assert isinstance(objective, objectives.Predictive)
    assert [objective.kl_weight(epoch) for epoch in (0, 5, 10, 40)] == [0.0, 0.25, 0.5, 0.5]
    assert replace(tempered, annealing=0.0).build(split).objective.kl_weight == 0.5


PAPER = {
    # Hidden layers, rates by weight, standard deviation of the prior.
    "bb-alpha/uci-mlp": ((50,), {"layers.2.weight": 0.05}, 1.0),
    "bb-alpha/mlp-mnist": ((100, 100), {"layers.2.weight": 0.5, "layers.4.weight": 0.5}, math.sqrt(10)),
    "bb-alpha/cnn-mnist": ((32, 32, 100), {"layers.7.weight": 0.5, "layers.10.weight": 0.5}, math.sqrt(10)),
}


@pytest.mark.parametrize("name", PAPER)
def test_bb_alpha_entries_are_the_paper_s(name):
    hidden, rates, scale = PAPER[name]
    entry = models.catalogue[name]
    assert "Li and Gal 2017" in entry.reference
    bnn, guide, objective, _ = entry.build(small_split(entry.data))
    assert repr(objective) == repr(objectives.BBAlpha(alpha=0.5, num_particles=10))
    layers = [m for m in bnn.network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert tuple(len(layer.weight) for layer in layers[:-1]) == hidden
    assert isinstance(guide, guides.Dropout)
    assert {site: rate.item() for site, rate in guide.rates().items()} == pytest.approx(rates)
    assert [prior.scale.item() for prior in bnn.priors.values()] == pytest.approx([scale] * len(bnn.priors))
    assert guide.from_dropout_layers == (name == "bb-alpha/cnn-mnist")
    if entry.data == "concrete":
        assert any(parameter.requires_grad for parameter in bnn.likelihood.parameters())  # the noise is learned


def test_network_is_sized_by_the_data():
    net = mlp(7, activation="tanh")(small_split("digits").train, 10)
    assert (net.in_features, net.out_features, net.hidden, net.activation) == (64, 10, (7,), "tanh")
    net = lenet()(small_split("cifar10").train, 10)
    assert (net.in_channels, net.image_size, net.num_classes) == (3, 32, 10)


def test_outputs_follow_the_likelihood():
    split = small_split("concrete")
    bnn, *_ = models.catalogue["mean-field/uci-heteroscedastic"].build(split)
    assert bnn.network.out_features == 2
    multi = Dataset(torch.randn(20, 3), torch.randn(20, 4)).split(test_size=4)
    bnn, *_ = models.catalogue["mean-field/uci-mlp"].build(multi)
    assert bnn.network.out_features == 4
    assert bnn.likelihood.scale.shape == (4,)


def test_a_class_that_the_training_rows_lack_gets_an_output():
    x, y = torch.randn(12, 5), torch.tensor([0, 1] * 5 + [2, 2])
    split = Split(Dataset(x[:10], y[:10]), Dataset(x[10:], y[10:]))
    assert models.catalogue["mean-field/digits"].build(split).bnn.network.out_features == 3
    named = Dataset(x[:10], y[:10], class_names=("a", "b", "c", "d"))
    assert models.catalogue["mean-field/digits"].build(named).bnn.network.out_features == 4


def test_known_noise_is_in_the_target_s_own_unit():
    split = Dataset(torch.randn(50, 1), 100.0 + 7.0 * torch.randn(50)).split(test_size=10)
    likelihood = gaussian(3.0)(split.train)
    assert likelihood.scale.item() == pytest.approx(3.0 / split.train.y.std(correction=0).item(), rel=0.02)
    plain = gaussian(3.0)(Dataset(torch.randn(5, 1), torch.randn(5)))
    assert plain.scale.item() == pytest.approx(3.0)


def test_fixed_noise_comes_back_in_predictions():
    entry = models.catalogue["mean-field/cubic"]
    split = data.load("cubic").split(test_size=5, seed=0)
    aleatoric = run(entry, split).predict(split.test.x, num_samples=2).aleatoric
    torch.testing.assert_close(aleatoric, torch.full_like(aleatoric, 9.0), rtol=1e-4, atol=0)


def test_task_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"'mean-field/uci-mlp' is for regression; given: 'digits', .* classification"):
        models.catalogue["mean-field/uci-mlp"].build(small_split("digits"))


def test_lenet_refuses_what_is_no_square_image():
    with pytest.raises(ValueError, match=r"square images .*'concrete' have shape \[8\]"):
        replace(models.catalogue["mean-field/uci-mlp"], network=lenet()).build(small_split("concrete"))


def test_adding_an_entry_takes_one_statement():
    entry = replace(models.catalogue["mean-field/uci-mlp"], name="map/wide", network=mlp(200), guide=guides.Map)
    bnn, guide, _, settings = entry.build(small_split("concrete"))
    assert isinstance(guide, guides.Map)
    assert isinstance(bnn.likelihood, likelihoods.Gaussian)
    assert [m.out_features for m in bnn.network.modules() if isinstance(m, nn.Linear)] == [200, 1]
    assert math.isclose(settings["lr"], 1e-2)
