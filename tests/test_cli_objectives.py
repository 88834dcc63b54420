"""The command line's objectives: what names, numbers and options make of a recipe, and pairs that are not defined."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import typer

from bnnzoo import guides, models, objectives
from bnnzoo.cli import options as parsing
from bnnzoo.cli import plan as planning
from bnnzoo.cli import report
from bnnzoo.cli.plan import FitOptions, Plan, resolve


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def planned(**options: object) -> Plan:
    return resolve(FitOptions(**{"data": "cubic", "annealing": 0.0, **options}))


def objective(**options: object) -> str:
    return repr(planned(**options).built.objective)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, objectives.ELBO()),
        ({"objective": "elbo:3"}, objectives.ELBO(3)),
        ({"particles": 3}, objectives.ELBO(3)),
        ({"objective": "bb-alpha"}, objectives.BBAlpha(0.5, 10)),
        ({"objective": "bb-alpha:0.3"}, objectives.BBAlpha(0.3, 10)),
        ({"objective": "bb-alpha:0"}, objectives.BBAlpha(0.0, 10)),
        ({"objective": "bb-alpha:-2,4"}, objectives.BBAlpha(-2.0, 4)),
        ({"objective": "bb-alpha", "alpha": -2.0, "particles": 4}, objectives.BBAlpha(-2.0, 4)),
        ({"objective": "bb-alpha:0.3", "particles": 4}, objectives.BBAlpha(0.3, 4)),
        ({"objective": "bb-alpha-exact:1"}, objectives.BBAlpha(1.0, 10, exact=True)),
        ({"objective": "predictive:4"}, objectives.Predictive(4)),
        ({"objective": "renyi:-inf,3"}, objectives.Renyi(-torch.inf, 3)),
        ({"objective": "renyi", "alpha": 2.0}, objectives.Renyi(2.0, 10)),
        ({"objective": "iw"}, objectives.ImportanceWeighted(10)),
        ({"objective": "iw", "particles": 5}, objectives.ImportanceWeighted(5)),
        ({"kl_weight": 0.5}, objectives.ELBO(kl_weight=0.5)),
        ({"objective": "iw", "kl_weight": 0.0}, objectives.ImportanceWeighted(kl_weight=0.0)),
        ({"annealing": 0.25, "epochs": 8}, objectives.ELBO(kl_weight=objectives.KLAnnealing(2.0))),
        (
            {"objective": "predictive", "annealing": 1.0, "kl_weight": 0.5, "epochs": 8},
            objectives.Predictive(kl_weight=objectives.KLAnnealing(8.0, final=0.5)),
        ),
    ],
    ids=str,
)
def test_options_make_the_objective(options, expected):
    assert objective(**options) == repr(expected)


def test_an_entry_s_objective_is_changed_or_replaced():
    entry = {"entry": "bb-alpha/cubic"}
    assert objective(**entry) == repr(objectives.BBAlpha(0.5, 10))
    assert objective(**entry, alpha=1.0) == repr(objectives.BBAlpha(1.0, 10))
    assert objective(**entry, particles=3) == repr(objectives.BBAlpha(0.5, 3))
    assert objective(**entry, objective="bb-alpha:1") == repr(objectives.BBAlpha(1.0, 10))
    assert objective(**entry, objective="elbo") == repr(objectives.ELBO())


def test_annealing_is_the_entry_s_whatever_the_objective():
    for name in parsing.OBJECTIVES:
        made = planned(objective=name, annealing=None, epochs=100).built.objective
        assert repr(made.kl_weight) == repr(objectives.KLAnnealing(25.0))


def test_what_a_name_leaves_open_is_inherited():
    table, own = parsing.OBJECTIVES, partial(objectives.BBAlpha, alpha=0.1, num_particles=7, exact=True)

    def inherited(text: str, own: object = own) -> dict:
        return parsing.inheriting(parsing.parse("--objective", text, table), own, table).keywords

    # `exact` is what sets bb-alpha and bb-alpha-exact apart.
    assert inherited("bb-alpha:0.9") == {"alpha": 0.9, "num_particles": 7}
    assert inherited("bb-alpha-exact") == {"alpha": 0.1, "num_particles": 7, "exact": True}
    assert inherited("renyi:0.9") == {"alpha": 0.9}
    assert inherited("bb-alpha:0.9", objectives.BBAlpha) == {"alpha": 0.9}
    assert inherited("bb-alpha:0.9", None) == {"alpha": 0.9}


def test_a_guide_asked_for_by_name_is_that_guide():
    learned = planned(entry="dropout-learned/cubic").built.guide
    plain = planned(entry="dropout-learned/cubic", guide="dropout").built.guide
    assert (learned.learn_rate, plain.learn_rate) == (True, False)


def test_another_network_has_no_dropout_layers_to_read():
    entry = {"entry": "bb-alpha/cnn-mnist", "data": "digits"}
    assert planned(**entry).built.guide.from_dropout_layers
    small = planned(**entry, hidden="20").built
    assert small.guide.rates().keys() == {"layers.2.weight"}
    assert small.bnn.network.hidden == (20,)


def refused(**options: object) -> typer.BadParameter:
    with pytest.raises(typer.BadParameter) as caught:
        planned(**options)
    assert list(Path.cwd().iterdir()) == []
    return caught.value


def test_an_undefined_pair_names_the_option_that_made_it(monkeypatch):
    own = replace(models.catalogue["mean-field/cubic"], name="iw/cubic", objective=objectives.ImportanceWeighted)
    broken = replace(own, name="iw/map", guide=guides.Map)
    monkeypatch.setattr(planning, "catalogue", {**models.catalogue, "iw/cubic": own, "iw/map": broken})
    for options, option in [
        ({"guide": "map", "objective": "renyi"}, "--objective"),
        ({"entry": "iw/cubic", "guide": "map"}, "--guide"),
        ({"entry": "iw/cubic", "prior": "log-uniform"}, "--prior"),
        ({"entry": "iw/map"}, None),
    ]:
        error = refused(**options)
        assert error.param_hint == option
        assert "density" in str(error) or "LogUniform" in str(error)


@pytest.mark.parametrize(
    "options",
    [
        {"guide": "map", "objective": "bb-alpha"},
        {"guide": "mnf-iaf", "objective": "renyi"},
        {"guide": "low-rank", "objective": "iw"},
        {"entry": "mcbn/uci-mlp", "objective": "bb-alpha:0"},
        {"entry": "mcbn/uci-mlp", "particles": 2},
    ],
    ids=str,
)
def test_defined_pairs_pass(options):
    assert planned(**options).built.guide is not None


def test_the_trial_leaves_the_model_as_it_was():
    state = torch.random.get_rng_state()
    network = planned(entry="mcbn/uci-mlp").built.bnn.network
    assert torch.equal(torch.random.get_rng_state(), state)
    counts = [value for name, value in network.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts
    assert not any(counts)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("minimized", "said"),
    [
        (objectives.ELBO(), "ELBO, 1 particle"),
        (objectives.ELBO(5, kl_weight=0.1), "ELBO, 5 particles, KL weight 0.1"),
        (objectives.BBAlpha(0.0), "BB-α 0, 10 particles"),
        (objectives.BBAlpha(-0.25, 3, exact=True), "BB-α -0.25 exact, 3 particles"),
        (objectives.Predictive(2), "predictive, 2 particles"),
        (objectives.Renyi(-torch.inf), "Rényi -inf, 10 particles"),
        (
            objectives.ImportanceWeighted(kl_weight=objectives.KLAnnealing(2.5, final=0.5)),
            "importance-weighted, 10 particles, KL weight rising to 0.5 until epoch 2.5",
        ),
    ],
)
def test_words_for_objectives(minimized, said):
    assert report.objective(minimized) == said
