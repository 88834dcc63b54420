"""`BayesianNetwork` around networks of all kinds: raw parameters, recurrent, attention, convolutions."""

import copy

import pytest
import torch
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, guides, likelihoods, objectives

N = 12


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(N, 3, generator=generator), torch.randn(N, generator=generator)


def draw(bnn: BayesianNetwork) -> dict[str, Tensor]:
    return {name: torch.randn(prior.shape()) for name, prior in bnn.sites.items()}


class Custom(nn.Module):
    """Raw parameters in lists, dicts and attributes, odd shapes, an unused one, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.parts = nn.ParameterList([nn.Parameter(torch.randn(3)) for _ in range(2)])
        self.named = nn.ParameterDict({"shift": nn.Parameter(torch.randn(1))})
        self.unused = nn.Parameter(torch.randn(2, 2))
        self.register_buffer("offset", torch.tensor(0.25))
        self.steps = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * x @ self.parts[0] + x @ self.parts[1] + self.named["shift"] + self.offset)[:, None]


def test_raw_parameters_are_sites():
    bnn = BayesianNetwork(Custom(), likelihoods.Gaussian(0.5))
    assert set(bnn.sites) == {"scale", "unused", "parts.0", "parts.1", "named.shift"}
    assert bnn.sites["scale"].shape() == ()
    x, y = data()
    v = draw(bnn)
    expected = v["scale"] * (x @ v["parts.0"]) + x @ v["parts.1"] + v["named.shift"] + 0.25
    torch.testing.assert_close(bnn.output(v, x).squeeze(1), expected)
    for sampling in ("local", "flipout", "dense"):
        guide = guides.MeanField(bnn, sampling=sampling)
        objectives.ELBO()(bnn, guide)(x, y).backward()
        assert guide.loc.grad.isfinite().all()


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.out = kind(3, 4, num_layers=2, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.out = nn.Linear(4, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        return self.out(self.block(self.attention(h, h, h)[0]).mean(1))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.PReLU(), nn.ConvTranspose2d(2, 1, 2))
        self.out = nn.LazyLinear(1)
        self(torch.zeros(1, 1, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x).flatten(1))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.norm = nn.Bilinear(3, 3, 4), nn.LayerNorm(4)
        self.out = nn.utils.parametrizations.weight_norm(nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.pair(x, x)))


NETWORKS = {
    "LSTM": (lambda: Recurrent(nn.LSTM), torch.randn(N, 5, 3)),
    "GRU": (lambda: Recurrent(nn.GRU), torch.randn(N, 5, 3)),
    "attention": (Attention, torch.randint(0, 5, (N, 6))),
    "convolutions": (Convolutional, torch.randn(N, 1, 5, 5)),
    "bilinear, layer norm, weight norm": (Bilinear, torch.randn(N, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_all_kinds_compute_with_the_given_weights(name):
    """The output for given values is that of the plain network with these values loaded, before and after training."""
    make, x = NETWORKS[name]
    network = make()
    bnn = BayesianNetwork(network, likelihoods.Gaussian(0.5))
    _, y = data()
    values = {site: torch.randn(prior.shape()) for site, prior in bnn.sites.items()}
    loaded = copy.deepcopy(network)
    loaded.load_state_dict(values, strict=False)
    torch.testing.assert_close(bnn.output(values, x), loaded(x))
    own = bnn.initial_values()
    torch.testing.assert_close(bnn.output(own, x), network(x))
    for sampling in ("local", "flipout", "dense"):
        guide = guides.MeanField(bnn, sampling=sampling)
        loss = objectives.ELBO()(bnn, guide)(x, y)
        loss.backward()
        assert loss.isfinite()
        assert guide.loc.grad.isfinite().all()
        used = [part.abs().sum() for part in guide.layout.split(guide.log_scale.grad)]
        assert all(grad > 0 for grad in used)
    torch.testing.assert_close(copy.deepcopy(bnn).output(values, x), loaded(x))
    torch.testing.assert_close(bnn.network(x), network(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_all_kinds_run_for_several_particles(name):
    make, x = NETWORKS[name]
    bnn = BayesianNetwork(make(), likelihoods.Gaussian(0.5))
    guide = guides.MeanField(bnn, sampling="dense", init_scale=1e-6)
    _, y = data()
    one = objectives.ELBO()(bnn, guide)(x, y)
    several = objectives.ELBO(num_particles=3)(bnn, guide)(x, y)
    torch.testing.assert_close(several, one, rtol=1e-3, atol=1e-3)
    several.backward()
    assert guide.loc.grad.isfinite().all()
