"""Entropies of what was never seen: the pieces that the tables and figures are made of."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from bnnzoo import BayesianNetwork, Prediction, data, likelihoods, models
from bnnzoo.evaluation import ood_scores
from bnnzoo.reproduce import Context, entries, mnf_ood
from bnnzoo.reproduce.fits import OtherSettingError
from bnnzoo.reproduce.mnf_lenet import METHODS, PAPER, images


def classes(spread, size=40, seed=0):
    logits = spread * torch.randn(1, 3, size, 10, generator=torch.Generator().manual_seed(seed))
    return Prediction({"logits": logits}, dist.Categorical, "classification")


def images_of(size):
    return data.as_dataset((torch.zeros(size, 1, 2, 2), torch.zeros(size, dtype=torch.long)))


@pytest.fixture
def context(tmp_path):
    return Context("smoke", tmp_path, quiet=True)


def test_the_figures_are_there():
    assert {"mnf/figure-2", "mnf/figure-3", "mnf/notmnist-guides"} <= set(entries())


@pytest.mark.parametrize("method", METHODS)
def test_every_guide_takes_a_dense_network_and_a_lenet(method):
    how = METHODS[method]
    options = {"batch_norm": how.batch_norm}
    for network in (models.MLP(784, 10, (4,), **options), models.LeNet(filters=(2, 2), hidden=4, **options)):
        bnn = BayesianNetwork(network, likelihoods.Categorical(), how.prior or dist.Normal(0.0, 1.0))
        assert list(how.guide(bnn, 0.5).parameters())


def test_nothing_outside_was_trained_on(context):
    for task, first in (("mnist", 0), ("cifar5", 5)):
        train, test = images(context, task)
        outside = mnf_ood.outside_of(context, task)
        assert outside.input_shape == train.input_shape == test.input_shape
        assert int(outside.y.min()) >= first
        known = {tuple(row.flatten().tolist()) for row in torch.cat([train.x, test.x])}
        assert not any(tuple(row.flatten().tolist()) in known for row in outside.x)


def test_what_is_measured_is_kept(context, tmp_path):
    inside, outside, asked = classes(4.0), classes(0.5, size=30, seed=1), []

    def predict(x, num_samples, seed):
        asked.append(num_samples)
        return inside if len(x) == 40 else outside

    labels = inside.classes.clone()
    labels[:8] = (labels[:8] + 1) % 10
    test = data.Dataset(images_of(40).x, labels, task="classification", class_names=[str(k) for k in range(10)])
    posterior = SimpleNamespace(predict=predict, info={"seconds": 3.0})
    arguments = (context, "mnist-mnf", "mnf", lambda: posterior, test, images_of(30), 7)
    found = mnf_ood.measured(*arguments)
    assert found["error"] == pytest.approx(8 / 40)
    np.testing.assert_allclose(found["inside"], inside.entropy, atol=1e-5)
    np.testing.assert_allclose(found["outside"], outside.entropy, atol=1e-5)
    expected = ood_scores(inside, outside).isel(chain=0)
    for measure in mnf_ood.MEASURES:
        assert found["scores"]["auroc"][measure] == pytest.approx(expected.auroc.sel(measure=measure).item())
    assert asked == [7, 7]
    assert mnf_ood.measured(*arguments) == json.loads(json.dumps(found))  # from the file
    assert asked == [7, 7]
    with pytest.raises(OtherSettingError, match="another draws"):
        mnf_ood.measured(*arguments[:-1], 8)
    for method, draws in (("map", 1), ("ensemble", 1), ("moments", None)):
        mnf_ood.measured(context, f"mnist-{method}", method, lambda: posterior, test, images_of(30), 7)
        assert asked[-2:] == [draws, draws]


def test_the_table_and_the_figure_say_what_was_measured():
    inside, outside = [0.0, 0.01, 0.2], [0.05, 0.5, 1.5, 2.0]
    scores = {
        name: {measure: place + 0.1 * number for number, measure in enumerate(mnf_ood.MEASURES)}
        for place, name in enumerate(("auroc", "aupr_out", "aupr_in", "fpr_95", "auroc_se", "fpr_95_se"))
    }
    scores["auroc_se"]["mutual_information"] = 0.0
    each = {"error": 0.02, "inside": inside, "outside": outside, "scores": scores, "setting": {"test": 10_000}}
    result = mnf_ood._result("MLP", {"map": each, "moments": each}, ("a", "b"), {"map": 0.6}, [], "figure")
    (table,) = result.tables
    (row, other) = table.rows
    assert row[:6] == ["Map (L2)", "2.00 ± 0.14", "0.6", "0.010", "1.000", "25"]
    assert other[2] == "-"
    assert row[6:9] == ["0.000 ± 4.000", "-", "0.200 ± 4.200"]
    assert row[9:] == ["1.000", "2.000", "300 ± 500"]
    assert len(row) == len(table.header)
    left, right = result.figures["figure"].axes
    assert [left.get_title(), right.get_title()] == ["a", "b"]
    assert np.max(right.get_lines()[0].get_xdata()) == 2.0
    marks = [line for line in right.get_lines() if line.get_label().startswith("_")]
    np.testing.assert_allclose(marks[0].get_xdata(), math.log(10))
    assert "inside" not in result.values["map"]
    assert mnf_ood.sure(outside) == 0.25
    assert set(PAPER) <= set(METHODS)
