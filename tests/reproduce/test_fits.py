"""What is kept is used again, and only if it was made alike."""

import json

import pytest
import torch

from bnnzoo import BayesianNetwork, Posterior, data, fit, guides, likelihoods, models
from bnnzoo.reproduce import fits


@pytest.fixture
def toy():
    torch.manual_seed(0)
    train = data.Dataset(torch.randn(20, 2), torch.randn(20))
    bnn = BayesianNetwork(models.MLP(2, 1, (3,)), likelihoods.Gaussian(0.5))
    return bnn, guides.MeanField(bnn), train


def state(posterior: Posterior) -> dict[str, torch.Tensor]:
    return posterior.state()[0]


def assert_same(one: Posterior, other: Posterior) -> None:
    assert all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


def test_a_posterior_is_made_once(toy, tmp_path, capsys):
    calls = []

    def make():
        calls.append(1)
        return fit(*toy, epochs=2, progress=False)

    first = fits.kept(tmp_path / "one.bnn", make)
    assert capsys.readouterr().out.startswith("one: ")
    again = fits.kept(tmp_path / "one.bnn", make, say=pytest.fail)
    assert calls == [1]
    assert again.info["seconds"] == first.info["seconds"] > 0
    assert_same(first, again)


def test_a_fit_that_was_interrupted_goes_on(toy, tmp_path):
    settings = {"epochs": 4, "batch_size": 5, "say": lambda text: None}
    whole = fits.trained(tmp_path / "whole.bnn", *toy, **settings)
    path = tmp_path / "parted.bnn"

    def interrupt(progress):
        if progress.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fits.trained(path, *toy, callback=interrupt, **settings)
    assert not path.exists()
    before = float(path.with_suffix(".seconds").read_text())
    epochs = []
    resumed = fits.trained(path, *toy, callback=lambda progress: epochs.append(progress.epoch), **settings)
    assert epochs == [3, 4]
    assert_same(resumed, whole)
    assert resumed.info["seconds"] > before > 0
    assert {file.name for file in tmp_path.iterdir()} == {"whole.bnn", "parted.bnn"}  # nothing is left behind
    assert_same(fits.trained(path, *toy, callback=lambda progress: pytest.fail("trained again"), **settings), whole)


def test_the_time_of_callbacks_is_not_that_of_the_fit(toy, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(fits.time, "process_time", lambda: clock[0])

    def slow(progress):
        clock[0] += 100.0

    posterior = fits.trained(tmp_path / "one.bnn", *toy, epochs=3, callback=slow, say=lambda text: None)
    assert posterior.info["seconds"] == 0.0


def test_numbers_are_computed_once_and_refused_from_another_setting(tmp_path):
    path, setting, said = tmp_path / "one.json", {"steps": 3, "rates": (0.1, 0.2)}, []
    first = fits.recorded(path, setting, lambda: {"pll": -1.0, "by_rate": (1, 2)}, said.append)
    assert first["pll"] == -1.0
    assert first["seconds"] >= 0
    assert len(said) == 1
    assert fits.recorded(path, setting, dict, said.append) == first == json.loads(path.read_text())
    assert len(said) == 1
    with pytest.raises(fits.OtherSettingError, match=r"one.json was made with another steps: keep this run elsewhere"):
        fits.recorded(path, {**setting, "steps": 4}, dict)
    with pytest.raises(fits.OtherSettingError, match="another draws"):
        fits.recorded(path, {**setting, "draws": 4}, dict)
    with pytest.raises(fits.OtherSettingError, match="another rates"):
        fits.recorded(path, {"steps": 3}, dict)


def test_what_makes_numbers_may_tell_their_time(tmp_path):
    assert fits.recorded(tmp_path / "one.json", {}, lambda: {"seconds": 7.0}, lambda text: None)["seconds"] == 7.0


def test_enlarged_digits_are_the_embedded_ones():
    train, test = fits.enlarged_digits()
    assert (train.x.shape[1:], len(train) + len(test)) == ((1, 28, 28), 300)
    places = (3.5 * torch.arange(8) + 1).long()  # a pixel becomes three or four
    small = train.x[:, 0][:, places][:, :, places].flatten(1)
    known = {tuple(row) for row in data.load("digits").x[:300].flatten(1).tolist()}
    assert {tuple(row) for row in small.tolist()} <= known


def test_the_network_of_a_point_computes_what_the_posterior_predicts(toy):
    bnn, _, train = toy
    posterior = fit(bnn, guides.Map(bnn), train, epochs=2, progress=False)
    network = fits.trained_network(posterior)
    expected = posterior.predict(train.x, num_samples=1).mean
    torch.testing.assert_close(network(train.x)[:, 0].detach(), expected)
