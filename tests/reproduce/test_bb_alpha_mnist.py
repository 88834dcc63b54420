"""Figures 4 and 5 of the BB-α paper: a curve does not disturb its fit, goes on where it stopped, is each chain's."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bnnzoo import load
from bnnzoo.reproduce import Context
from bnnzoo.reproduce import bb_alpha_mnist as module
from bnnzoo.reproduce.fits import OtherSettingError


def context_of(folder):
    folder.mkdir(exist_ok=True)
    return Context("smoke", folder, quiet=True)


@pytest.fixture
def images(tmp_path):
    return module.images_of(context_of(tmp_path))


def job_of(context, kind="mlp", **changes):
    return replace(module.job_of(context, kind, 0.5), **({"epochs": 3, "draws": 3, "points": 3} | changes))


def test_scoring_in_the_midst_of_a_fit_leaves_the_fit_alone(images, tmp_path):
    finals = []
    for points in (1, 3):
        context = context_of(tmp_path / str(points))
        record = module.fit_and_score(context, job_of(context, points=points), images)
        assert len(record["curve"]) == points
        assert len(record["others"]) == 2
        assert record["steps"] == 3 * 2  # epochs of 240 images
        posterior = load(context.folder / "mlp-0.5.bnn")
        prediction = posterior.predict(images.test.x, num_samples=3, seed=0)
        # The last point of the curve is the fitted posterior's, and each chain's own.
        for chain in range(2):
            pll = prediction.chain(chain).log_prob(images.test.y).mean()
            assert record["curve"]["3"]["pll"][chain] == pytest.approx(pll.item(), rel=1e-5)
        finals.append(posterior.state()[0])
    for name, value in finals[0].items():
        assert torch.equal(value, finals[1][name])


def test_an_interrupted_curve_goes_on_and_a_finished_one_stays(images, tmp_path, monkeypatch):
    whole, parted = context_of(tmp_path / "whole"), context_of(tmp_path / "parted")
    job = job_of(whole, "mlp-pixels")
    expected = module.fit_and_score(whole, job, images)
    score = module.by_chain

    def interrupted(prediction, y):
        if (parted.folder / "mlp-pixels-0.5.checkpoint").exists():  # in the second epoch
            raise KeyboardInterrupt
        return score(prediction, y)

    monkeypatch.setattr(module, "by_chain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.fit_and_score(parted, job, images)
    monkeypatch.setattr(module, "by_chain", score)
    resumed = module.fit_and_score(parted, job, images)
    assert resumed["curve"] == expected["curve"]
    assert resumed["others"] == expected["others"]
    monkeypatch.setattr(module, "by_chain", None)
    assert module.fit_and_score(parted, job, images) == resumed
    with pytest.raises(OtherSettingError, match="made with the setting"):
        module.fit_and_score(parted, replace(job, draws=4), images)


def test_scored_epochs_are_evenly_spaced_and_end_at_the_last(tmp_path):
    context = Context("smoke", tmp_path)
    assert job_of(context, epochs=20, points=4).scored() == [5, 10, 15, 20]
    assert job_of(context, epochs=2, points=10).scored() == [1, 2]


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("mlp", {"layers.2.weight": 0.5, "layers.4.weight": 0.5}),
        ("mlp-pixels", {"layers.0.weight": 0.5, "layers.2.weight": 0.5, "layers.4.weight": 0.5}),
        ("cnn", {"layers.7.weight": 0.5, "layers.10.weight": 0.5}),
    ],
)
def test_what_is_dropped(images, tmp_path, monkeypatch, kind, rates):
    context, seen = context_of(tmp_path / kind), []

    def trained(path, bnn, guide, train, **settings):
        seen.append((guide, train, settings))
        return SimpleNamespace(info={"seconds": 1.0})

    monkeypatch.setattr(module, "trained", trained)
    module.fit_and_score(context, replace(job_of(context, kind, chains=3), rows=100), images)
    ((guide, train, settings),) = seen
    assert {site: rate.item() for site, rate in guide.rates().items()} == rates
    assert (len(train), settings["chains"], settings["objective"].alpha) == (100, 3, 0.5)


def test_the_table_and_the_figure_show_means_over_repeats(tmp_path):
    jobs = [replace(module.job_of(Context("cpu", tmp_path), "mlp", alpha), epochs=2) for alpha in module.ALPHAS]
    scores = {"accuracy": [0.9, 0.92], "pll": [-0.3, -0.1], "ece": [0.01, 0.03], "entropy": [0.2, 0.2]}
    records = {
        job: {"curve": {"1": scores, "2": scores}, "others": [1.0, 2.0], "seconds": 4.0, "steps": 8} for job in jobs
    }
    table = module.report(records, "MLP")
    assert table.rows[1] == [
        "0.5", "2", "91.00 ± 1.00", "-0.2000 ± 0.1000", "0.0200 ± 0.0100", "0.2000 ± 0.0000", "1.500 ± 0.500",
        "500.0", "4",
    ]  # fmt: skip
    accuracy, pll, course, _ = module.draw(records, "MLP").axes
    assert [float(bar.lines[0].get_ydata()[0]) for bar in accuracy.containers] == pytest.approx([91.0] * 3)
    assert [float(bar.lines[0].get_ydata()[0]) for bar in pll.containers] == pytest.approx([-0.2] * 3)
    assert list(course.lines[0].get_xdata()) == [1, 2]
