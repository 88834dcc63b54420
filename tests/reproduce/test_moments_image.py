"""An image with noise, through a network in which everything is known."""

import math

import pytest
import torch
from torch import nn

from bnnzoo.reproduce import moments_image as image
from bnnzoo.reproduce.entry import Context
from bnnzoo.reproduce.moments_nets import images_of


def test_a_linear_network_has_gaussian_logits(tmp_path, monkeypatch):
    torch.manual_seed(0)
    context = Context("smoke", tmp_path, quiet=True)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def trained(name, parts, context):
        assert torch.is_grad_enabled()
        return network

    monkeypatch.setattr(image, "trained_net", trained)
    monkeypatch.setattr(Context, "pick", lambda self, smoke, cpu, paper: cpu)
    result = image.figure_1(context)
    weight, x = network[1].weight, images_of("mnist", context)[1].x[:1]
    loc = network(x)[0]
    std = (image.VARIANCE * weight.square().sum(1)).sqrt()
    for row in result.tables[0].rows:
        label = int(row[0])
        drawn, spread = map(float, row[1].split(" ± "))
        # 2000 draws; two digits are printed
        assert drawn == pytest.approx(loc[label].item(), abs=0.005 + 5.5 * std[label].item() / math.sqrt(2000))
        assert spread == pytest.approx(std[label].item(), abs=0.005 + 5.5 * std[label].item() / math.sqrt(4000))
        assert float(row[2]) == pytest.approx(loc[label].item(), abs=0.006)
        assert row[3] == f"{loc[label]:.2f} ± {std[label]:.2f}"
    values = {name: torch.tensor(each) for name, each in result.values.items()}
    torch.testing.assert_close(values["AP1"], loc.softmax(0))
    assert all(each.sum().item() == pytest.approx(1, abs=1e-5) for each in values.values())
    assert list(result.figures) == ["noisy-image"]
