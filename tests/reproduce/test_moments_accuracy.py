"""Accuracy by layer: the printed tables, ours beside them, and networks that are trained once."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

from bnnzoo import models
from bnnzoo.moments import Moments
from bnnzoo.reproduce import moments_accuracy as accuracy
from bnnzoo.reproduce import moments_nets as nets
from bnnzoo.reproduce.entry import Context
from bnnzoo.reproduce.moments_paper import TABLE_2, TABLE_3


def test_the_printed_numbers_are_errors():
    assert len(TABLE_2) == len(accuracy.SETTINGS[2]) == 6
    assert len(TABLE_3) == len(accuracy.SETTINGS[3]) == 4
    for rows in (*TABLE_2, *TABLE_3):
        one, two, sigma = (np.array(values) for values in (rows.ap1, rows.ap2, rows.sigma))
        known = ~np.isnan(one)
        assert (known == ~np.isnan(two)).all()
        assert (two[known] <= one[known]).all()  # AP2 is never worse in the paper
        assert ((sigma[~np.isnan(sigma)] > 0) & (sigma[~np.isnan(sigma)] < 1.2)).all()
        assert min(rows.kl, rows.kl_logistic) <= rows.kl_ap1
    assert math.isnan(TABLE_2[0].column("C1")["ap1"])
    assert TABLE_2[2].column("F") == {"ap1": 1.60, "ap2": 0.10, "sigma": 0.79}


def test_columns_are_the_papers():
    assert list(accuracy.columns(models.MomentLeNet())) == ["C1", "A1", "C2", "A2", "C3", "A3", "F"]
    deep = accuracy.columns(models.MomentCIFARNet(width=0.05))
    assert tuple(deep) == accuracy.SETTINGS[3][0].paper.columns
    assert deep["P"] == "output"


def measured(**changes):
    """Measures that meet every claim beside Table 2's third part, but for changes."""
    names = ["C1", "A1", "C2", "A2", "C3", "A3", "F"]
    values = {"eps_mu_ap1": [1.0] * 7, "eps_mu_ap2": [0.05] * 7, "eps_sigma": [1.0] * 7} | changes
    last = [math.nan] * 6
    table = xr.Dataset(
        {name: ("layer", each) for name, each in values.items()}
        | {f"kl_{name}": ("layer", [*last, kl]) for name, kl in (("ap1", 1.0), ("simplified", 0.1), ("logistic", 0.2))}
        | {"eps_mu_floor": 0.025},
        {"layer": names},
        {"inputs": 3, "num_samples": 1000},
    )
    setting = accuracy.SETTINGS[2][2]
    ways = {"AP2": table, "calibrated": table, "sensitivity": table}
    return accuracy.Measured(setting, ways, {"AP2": 1.0}, 2.0)


def test_verdicts_count_the_cells_that_fail():
    assert [line.split(": in ")[1] for line in accuracy.verdicts([measured()])] == [
        "6 of 6 cells.", "6 of 6 cells.", "2 of 2 cells.", "7 of 7 cells.", "1 of 1 cells.",
    ]  # fmt: skip
    # twice the paper's is 0.06, 0.08, 0.10, 0.12, 0.14, 0.20 from A1 on
    lines = accuracy.verdicts([measured(eps_mu_ap2=[9.0, 0.07, 0.07, 0.11, 0.11, 0.15, 2.0])])
    assert "in 2 of 6 cells; not in" in lines[0]
    assert "A1: 0.07, not up to 0.06" in lines[0]
    assert "1 more" in lines[0]
    assert "F: 2, not up to 1." in lines[1]
    lines = accuracy.verdicts([measured(eps_sigma=[1.0] * 6 + [0.85])])
    assert "F: 0.85, not 0.9 to 1.1" in lines[3]
    assert "in 0 of 1 cells" in lines[4]


def test_rows_put_the_papers_numbers_beside_ours():
    rows = {row[0]: row[1:] for row in accuracy.rows_of(measured())}
    assert rows["ε_μ AP1, paper"] == ["-", "0.31", "0.74", "0.51", "1.47", "1.11", "1.60", "5.1", "-"]
    assert rows["ε_μ AP2"] == [*7 * ["0.05"], "0.1", "0.2"]
    assert rows["ε_σ AP2, paper"][-3:] == ["0.79", "-", "-"]
    assert {len(row) for row in rows.values()} == {9}


def test_a_training_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    settings = {"scale": "smoke", "quiet": True}
    contexts = [Context(folder=tmp_path / name, **settings) for name in ("whole", "parted")]
    train, test = nets.images_of("mnist", contexts[0])
    parts = train[:30], test[:10]
    monkeypatch.setattr(Context, "pick", lambda self, *values: 3)
    whole = nets.trained_net("dropout", parts, contexts[0])
    save, saved = torch.save, []

    def interrupted(state, path):
        save(state, path)
        saved.append(path)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(nets.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nets.trained_net("dropout", parts, contexts[1])
    assert [path.suffix for path in saved] == [".checkpoint"] * 2
    monkeypatch.setattr(nets.torch, "save", save)
    resumed = nets.trained_net("dropout", parts, contexts[1])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    assert [path.name for path in (tmp_path / "parted").iterdir()] == ["moments-dropout.pt"]
    monkeypatch.setattr(nets, "train", None)
    assert torch.equal(nets.trained_net("dropout", parts, contexts[1])(parts[1].x), whole(parts[1].x))


def test_normalization_by_batch_and_noise_is_that_of_draws():
    torch.manual_seed(0)
    loc, scale = torch.randn(6, 3, 4, 4).double(), 0.5 + torch.rand(6, 3, 4, 4).double()
    norm = torch.nn.BatchNorm2d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    output = nets.normalized(Moments(loc, scale.square()), norm)
    # many draws of the whole batch as one batch
    draws = loc + scale * torch.randn(4000, *loc.shape, dtype=torch.float64)
    reference = torch.nn.functional.batch_norm(
        draws.flatten(0, 1), None, None, norm.weight, norm.bias, training=True
    ).view_as(draws)
    error = output.scale / math.sqrt(4000)
    assert ((output.loc - reference.mean(0)).abs() < 6 * error).all()
    assert ((output.scale / reference.std(0) - 1).abs() < 6 / math.sqrt(2 * 4000)).all()
    torch.testing.assert_close(norm.running_mean, 0.1 * draws.mean((0, 1, 3, 4)), atol=0.005, rtol=0)
    variance = draws.transpose(0, 2).flatten(1).var(1)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance, atol=0.005, rtol=0)
