"""Analytic dropout: one initial point, curves that go on, networks that are what the paper says."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from bnnzoo import moments
from bnnzoo.reproduce import moments_dropout as dropout
from bnnzoo.reproduce.entry import Context
from bnnzoo.reproduce.fits import OtherSettingError
from bnnzoo.reproduce.moments_nets import held_out, images_of

JOB = dropout.Job(5, 1.0, "analytic", 0.5, 3, 0)


def context(folder):
    folder.mkdir(exist_ok=True)
    return Context("smoke", folder, quiet=True)


@pytest.fixture(scope="module")
def images():
    return held_out(images_of("mnist", Context("smoke", None)))


def test_the_convolutional_network_starts_where_batch_normalization_would():
    torch.manual_seed(0)
    images = torch.rand(40, 3, 32, 32)
    network = dropout.convolutional(0.3, 0.05, images).eval()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network)
    assert sum(isinstance(layer, nn.Dropout) for layer in network) == 8
    x, count = images, 0
    with torch.no_grad():
        for layer in network:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                count += 1
                torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(x.shape[1]), atol=1e-4, rtol=0)
                torch.testing.assert_close(x.var((0, 2, 3)), torch.ones(x.shape[1]), atol=0.02, rtol=0)
    assert count == 9


def test_the_normalized_network_goes_by_the_statistics_of_the_images():
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    network = dropout.normalized(0.3, 0.05, images)
    torch.testing.assert_close(network.data_mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(network.data_variance, images.var((0, 2, 3)), rtol=1e-3, atol=0)
    kinds = [type(layer) for layer in network.network]
    assert kinds.count(moments.MomentNorm) == kinds.count(nn.Conv2d) == 9
    assert nn.BatchNorm2d not in kinds


def test_curves_go_on_where_they_were_interrupted_and_finished_ones_stay(images, tmp_path, monkeypatch):
    whole = dropout.run(JOB, images, context(tmp_path / "whole"))
    assert list(whole["curve"]) == ["1", "2", "3"]
    assert whole["curve"]["3"]["ap1"] != whole["curve"]["3"]["ap2"]
    score = dropout.scored
    parted = tmp_path / "parted"

    def interrupted(network, part):
        if (parted / "analytic-0.5.checkpoint").exists():  # in the second epoch
            raise KeyboardInterrupt
        return score(network, part)

    monkeypatch.setattr(dropout, "scored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dropout.run(JOB, images, context(parted))
    assert list(json.loads((parted / "analytic-0.5-curve.json").read_text())) == ["1"]
    monkeypatch.setattr(dropout, "scored", score)
    resumed = dropout.run(JOB, images, context(parted))
    assert resumed["curve"] == whole["curve"]
    monkeypatch.setattr(dropout, "trained", None)
    assert dropout.run(JOB, images, context(parted)) == resumed
    with pytest.raises(OtherSettingError, match="another seed"):
        dropout.run(replace(JOB, seed=1), images, context(parted))


def test_methods_start_at_one_point():
    methods = (("none", 0.0), ("sampled", 0.2), ("analytic", 0.2), ("expected", 0.5))
    starts = [replace(JOB, method=method, rate=rate).model(torch.rand(2, 1, 28, 28)) for method, rate in methods]
    assert [bnn.network.dropout for bnn in starts] == [0.0, 0.2, 0.2, 0.5]
    weights = [list(bnn.network.parameters()) for bnn in starts]
    for others in weights[1:]:
        for one, other in zip(weights[0], others, strict=True):
            assert torch.equal(one, other)


def record(*scores):
    return {"seconds": 7.0, "curve": {str(i + 1): {"ap1": s, "ap2": s} for i, s in enumerate(scores)}}


def test_the_table_has_the_last_epoch_and_the_best():
    job = replace(JOB, epochs=2)
    table = dropout.report({job: record({"accuracy": 0.9, "pll": -0.25}, {"accuracy": 0.95, "pll": -0.5})})
    expected = ["0.5", "analytic, -log q(y)", "5.00%", "5.00%", "-0.5000", "-0.5000", *2 * ["-0.2500 (1)"], "7"]
    assert table.rows == [expected]


def test_a_tenth_is_held_out(images):
    train, test = images_of("mnist", Context("smoke", None))
    assert len(images.validation) == round(0.1 * len(train))
    assert len(images.train) + len(images.validation) == len(train)
    assert torch.equal(images.test.x, test.x)
    rows = {tuple(row) for row in images.train.x.flatten(1).tolist()}
    assert all(tuple(row) not in rows for row in images.validation.x.flatten(1).tolist())
