"""Whole networks, unmodified: exact where elements are independent, else within stated distances of their draws."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bnnzoo.models import MLP, EncoderDecoder, KerasCNN, LeNet, ResNet
from bnnzoo.moments import Moments, per_layer, propagate
from tests.statistical import assert_mean


def test_the_first_hidden_layer_is_exact():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.LeakyReLU(0.1), nn.Dropout(0.3), nn.Linear(7, 3)).double()
    mean, variance = torch.randn(2, 5).double(), torch.rand(2, 5).double()
    found = per_layer(net, mean, variance)
    x = mean + variance.sqrt() * torch.randn(40_000, 2, 5).double()
    net.eval()
    net[2].train()
    draws = {}
    for name, layer in net.named_children():
        draws[name] = x = layer(x)
    for name in ("0", "1", "2"):
        assert_mean(draws[name], found[name].loc, 200, f"mean of {name}")
        assert_mean((draws[name] - found[name].loc).square(), found[name].variance, 200, f"variance of {name}")
    # the output's elements are sums of dependent units: means stay exact
    assert_mean(draws["3"], found["3"].loc, 200, "mean of the output")


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2)])
def test_random_weights_of_one_hidden_layer_are_exact(activation):
    # Units have weights of their own: given a certain input they are independent, up to the outputs.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 2)).double()
    x = torch.randn(3, 4).double()
    weights = {name: Moments(p.detach(), 0.2 * torch.rand_like(p)) for name, p in net.named_parameters()}
    found = functional_call(net, weights, Moments(x))

    def drawn(noise: dict[str, Tensor]) -> Tensor:
        return functional_call(net, {name: w.loc + w.scale * noise[name] for name, w in weights.items()}, x)

    draws = torch.func.vmap(drawn)({name: torch.randn(60_000, *w.shape).double() for name, w in weights.items()})
    assert_mean(draws, found.loc, 20, "mean")
    assert_mean((draws - found.loc).square(), found.variance, 20, "variance")


NETWORKS = {
    "MLP": (lambda: MLP(6, 3, [20, 20]), (4, 6)),
    "MLP, normalized": (lambda: MLP(6, 3, [20, 20], batch_norm=True), (4, 6)),
    "LeNet": (lambda: LeNet(filters=(4, 6), hidden=20), (2, 1, 28, 28)),
    "KerasCNN": (lambda: KerasCNN(filters=4, hidden=16), (2, 1, 28, 28)),
    "ResNet, A": (lambda: ResNet(depth=8, width=4), (2, 3, 16, 16)),
    "ResNet, B": (lambda: ResNet(depth=8, width=4, shortcut="B", slope=0.0), (2, 3, 16, 16)),
    "EncoderDecoder": (lambda: EncoderDecoder(3, 3, width=4, dropout=0.2), (1, 3, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_propagate_unmodified(name):
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    net, x = build(), torch.randn(shape)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1)
    # where max pooling returns positions, those of the means
    fallback = "linearize" if name == "EncoderDecoder" else None
    found = propagate(net, x, 0.05, fallback=fallback)
    drawn = propagate(net, x, 0.05, "sample", num_samples=300)
    assert found.shape == net.eval()(x).shape
    # Not exact: units are dependent. Mean absolute error of the means in standard deviations, of which 0.05 are the
    # draws' own, and the geometric mean of the ratios of standard deviations.
    error = (found.loc - drawn.loc).abs().mean() / drawn.scale.mean()
    ratio = (found.scale / drawn.scale).log().mean().exp()
    assert error < (0.5 if fallback else 0.25)
    assert 0.7 < ratio < 1.5
    if not fallback:
        plain = propagate(net, x, 0.05, "ap1")
        assert error < (plain.loc - drawn.loc).abs().mean() / drawn.scale.mean(), "better than without variances"


@pytest.mark.parametrize("name", NETWORKS)
def test_without_variance_they_are_what_they_are(name):
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    net, x = build().eval(), torch.randn(shape)
    assert torch.equal(net(Moments(x)).loc, net(x))
    fallback = "linearize" if name == "EncoderDecoder" else None
    layers = per_layer(net.apply(_without_dropout), x, 1e-12, fallback=fallback)
    final = list(layers.values())[-1]
    torch.testing.assert_close(final.loc.view(net(x).shape), net(x), rtol=1e-3, atol=1e-4)
    assert all(value.variance.min() >= 0 for value in layers.values())


def _without_dropout(module: nn.Module) -> None:
    if hasattr(module, "p"):
        module.p = 0.0


class Modern(nn.Module):
    """What other networks do: in place, by methods, by functions, by attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(inplace=True))
        self.left = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = x.chunk(2, 1)
        x += torch.cat([self.left(a), b], 1) * self.scale
        x = self.up(torch.nn.functional.avg_pool2d(x, 2))
        x = x.mean([2, 3])
        x = self.norm(x)
        queries = self.head(x)
        return torch.einsum("nc,kc->nk", queries, self.scale.flatten().expand(3, 8)) / x.size(1) ** 0.5


def test_other_ways_to_write_networks():
    torch.manual_seed(0)
    net, x = Modern(), torch.randn(2, 3, 6, 6)
    found = propagate(net, x, 0.1)
    drawn = propagate(net, x, 0.1, "sample", num_samples=500)
    assert ((found.loc - drawn.loc).abs() < 0.5 * drawn.scale).all()
    assert (found.scale / drawn.scale > 0.3).all()
    assert (found.scale / drawn.scale < 3).all()
