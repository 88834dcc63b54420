"""`RandomWeight` as a tensor: what draws, what is refused, what falls back to one dense sample."""

import copy

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from statistical import assert_covariance, assert_mean
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.func import functional_call

from bnnzoo._vectorize import vectorize
from bnnzoo.rules import RandomWeight
from bnnzoo.weights import SAMPLINGS, Block, DeltaBlock, FlatNormal, Layout, NormalBlock, NormalWeight

STRUCTURED = ["local", "flipout"]


def sites(shapes: dict[str, tuple[int, ...]], rule: str = "local", dtype=torch.float64) -> dict[str, NormalWeight]:
    layout = Layout({name: torch.Size(shape) for name, shape in shapes.items()})
    block = NormalBlock(
        torch.randn(layout.size, dtype=dtype), torch.randn(layout.size, dtype=dtype) - 1, layout, [rule] * len(shapes)
    )
    return dict(block.sites())


def weight(*shape: int, rule: str = "local", dtype=torch.float64) -> RandomWeight:
    value = sites({"w": shape}, rule, dtype)["w"].structured()
    assert isinstance(value, RandomWeight)
    return value


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


@pytest.mark.parametrize("rule", STRUCTURED)
def test_reading_metadata_draws_nothing(rule):
    w = weight(3, 4, rule=rule)
    state = torch.get_rng_state()
    assert w.shape == w.size() == (3, 4)
    assert (w.size(0), w.shape[-1], len(w), w.dim(), w.ndim, w.numel(), w.nelement()) == (3, 4, 3, 2, 2, 12, 12)
    assert (w.dtype, w.device, w.layout) == (torch.float64, torch.device("cpu"), torch.strided)
    assert w.is_floating_point()
    assert not w.is_complex()
    assert not w.is_sparse
    assert not w.is_cuda
    assert w.is_cpu
    assert w.is_contiguous()
    assert w.stride() == (4, 1)
    assert w.get_device() == -1
    assert isinstance(w.requires_grad, bool)
    assert "RandomWeight('w', shape=(3, 4)" in repr(w)
    assert torch.equal(torch.get_rng_state(), state)
    assert w._sample is None
    F.linear(uniform(2, 4), w)  # and the weight can still be consumed by its rule


@pytest.mark.parametrize("rule", STRUCTURED)
@pytest.mark.parametrize("again", [lambda w: F.linear(uniform(2, 4), w), lambda w: w.norm(), lambda w: w + 1])
def test_a_second_use_is_an_error_that_names_the_weight_and_the_cure(rule, again):
    w = weight(3, 4, rule=rule)
    F.linear(uniform(2, 4), w)
    with pytest.raises(RuntimeError, match=rf"'w' is used more than once .*{rule}.*sampling=\{{'w': 'dense'"):
        again(w)


@pytest.mark.parametrize("rule", STRUCTURED)
def test_a_weight_drawn_already_is_consumed_as_that_draw(rule):
    """`x.type_as(weight)` or a spectral norm before the layer must not break it."""
    w = weight(3, 4, rule=rule)
    x = uniform(2, 4)
    norm = w.norm()
    torch.testing.assert_close(F.linear(x, w), x @ w.dense().T)
    torch.testing.assert_close(F.linear(x, w), x @ w.dense().T)
    torch.testing.assert_close(norm, w.dense().norm())


@pytest.mark.parametrize("rule", STRUCTURED)
def test_layers_without_a_rule_see_one_sample(rule):
    x, mask = uniform(2, 4), torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    w = weight(3, 4, rule=rule)
    uses = {
        "matmul": x @ w.t(),
        "torch.matmul": torch.matmul(x, w.T),
        "reflected matmul": (w @ x.T).T,
        "masked": (w * mask) @ x.T,
        "masked, reflected": (mask * w) @ x.T,
        "row": w[1],
        "columns": w[:, [0, 2]],
        "unpacked": torch.stack(list(w)),
        "stacked": torch.stack([w, w])[1],
        "concatenated": torch.cat([w, mask[None]]),
        "einsum": torch.einsum("oi,ni->no", w, x),
        "embedding": F.embedding(torch.tensor([2, 0]), w),
        "linear input": F.linear(w, torch.eye(4, dtype=torch.float64)),
        "view": w.view(4, 3),
        "clone": w.clone(),
    }
    d = w.dense()
    assert type(d) is Tensor
    expected = {
        "matmul": x @ d.t(),
        "torch.matmul": x @ d.T,
        "reflected matmul": (d @ x.T).T,
        "masked": (d * mask) @ x.T,
        "masked, reflected": (d * mask) @ x.T,
        "row": d[1],
        "columns": d[:, [0, 2]],
        "unpacked": d,
        "stacked": d,
        "concatenated": torch.cat([d, mask[None]]),
        "einsum": x @ d.T,
        "embedding": d[[2, 0]],
        "linear input": d,
        "view": d.view(4, 3),
        "clone": d,
    }
    for name, value in uses.items():
        torch.testing.assert_close(value, expected[name], msg=lambda m, name=name: f"{name}: {m}")


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(3, 2, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


MODULES = {
    "LSTM": (lambda: Recurrent(nn.LSTM), (2, 5, 3)),
    "GRU": (lambda: Recurrent(nn.GRU), (2, 5, 3)),
    "RNN": (lambda: Recurrent(nn.RNN), (2, 5, 3)),
    "attention": (Attention, (2, 5, 4)),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), (2, 5, 4)),
    "bilinear": (lambda: Twice(nn.Bilinear(4, 4, 3)), (2, 4)),
    "layer norm": (lambda: nn.LayerNorm(4), (2, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3)),
    "batch norm": (lambda: nn.BatchNorm1d(4, track_running_stats=False), (5, 4)),
    "prelu": (lambda: nn.PReLU(4), (2, 4)),
}


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


@pytest.mark.parametrize("rule", STRUCTURED)
@pytest.mark.parametrize("name", MODULES)
def test_modules_without_a_rule_compute_with_the_dense_samples(name, rule):
    make, shape = MODULES[name]
    net = make().double()
    x = torch.randn(shape, dtype=torch.float64)
    values = {n: s.structured() for n, s in sites({n: p.shape for n, p in net.named_parameters()}, rule).items()}
    # What is linear inside a transformer layer is consumed by its rule: make these dense beforehand.
    for value in values.values():
        value.dense()
    output = functional_call(net, values, (x,))
    torch.testing.assert_close(output, functional_call(net, {n: v.dense() for n, v in values.items()}, (x,)))
    assert not torch.allclose(output, net(x))


def test_the_dense_sample_has_the_weights_distribution():
    site = sites({"w": (2, 2), "v": (1,)})["w"]
    draws = vectorize(lambda _: (site.structured() * 1.0).flatten())(torch.arange(10_000))
    assert_mean(draws, site.mean.flatten(), 100)
    assert_covariance(draws, site.mean.flatten(), site.variance.flatten().diag(), 100)


@pytest.mark.parametrize("rule", SAMPLINGS)
def test_chains_by_draws_in_nested_maps(rule):
    """Mapped parameters, draws mapped inside: every chain keeps its own moments, no noise is shared."""
    layer = nn.Linear(3, 2).double()
    layout = Layout({"weight": torch.Size([2, 3]), "bias": torch.Size([2])})
    locs = torch.randn(4, layout.size, dtype=torch.float64)
    log_scales = torch.randn(4, layout.size, dtype=torch.float64) - 1
    x = torch.randn(5, 3, dtype=torch.float64)

    def draw(loc: Tensor, log_scale: Tensor, _: Tensor) -> Tensor:
        block = NormalBlock(loc, log_scale, layout, [rule, rule])
        return functional_call(layer, {name: site.structured() for name, site in block.sites()}, (x,))

    chains = vectorize(vectorize(draw, in_dims=(None, None, 0)), in_dims=(0, 0, None))
    draws = chains(locs, log_scales, torch.arange(6000))
    assert draws.shape == (4, 6000, 5, 2)
    weights, biases = zip(*(layout.split(loc) for loc in locs), strict=True)
    mean = torch.stack([F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)])
    variances = [layout.split((2 * s).exp()) for s in log_scales]
    variance = torch.stack([F.linear(x * x, w, b) for w, b in variances])
    assert_mean(draws.transpose(0, 1), mean, 1000)
    assert_mean((draws - mean[:, None]).square().transpose(0, 1), variance, 1000, "variance")
    noise = ((draws - mean[:, None]) / variance.sqrt()[:, None]).flatten(2)
    assert_mean((noise[:1] * noise[1:]).transpose(0, 1), torch.zeros(3, 10), 1000, "covariance between chains")


@pytest.mark.parametrize("rule", SAMPLINGS)
def test_functional_call_leaves_the_module_as_it_was(rule):
    layer = nn.Conv1d(2, 3, 3)
    before = copy.deepcopy(layer.state_dict())
    values = sites({name: p.shape for name, p in layer.named_parameters()}, rule, torch.float32)
    output = functional_call(layer, {name: site.structured() for name, site in values.items()}, torch.randn(2, 2, 5))
    assert output.dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert all(isinstance(p, nn.Parameter) for p in layer.parameters())


@pytest.mark.parametrize("rule", SAMPLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_zeros_have_finite_gradients(rule, dtype):
    """Dead units and black borders: where there is no bias, the variance and its square root's argument are 0."""
    layout = Layout({"w": torch.Size([2, 3])})
    loc = torch.randn(6, dtype=dtype, requires_grad=True)
    log_scale = torch.zeros(6, dtype=dtype, requires_grad=True)
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]], dtype=dtype, requires_grad=True)
    ((_, site),) = NormalBlock(loc, log_scale, layout, [rule]).sites()
    output = F.linear(x, site.structured())
    assert output.dtype == dtype
    assert output[0].abs().max() < 1e-6
    output.square().sum().backward()
    for value in (loc, log_scale, x):
        assert value.grad.isfinite().all()
    assert (loc.grad.view(2, 3)[:, 1] == 0).all(), "an input that is 0 everywhere says nothing of its weights"
    assert (log_scale.grad.view(2, 3)[:, 1] == 0).all()
    assert (log_scale.grad.view(2, 3)[:, 0] != 0).all()


def test_noise_of_dead_rows_is_not_denormal_downstream():
    """The CPU multiplies denormal numbers ten times slower: squares of what a dead row emits must not be such."""
    for dtype in (torch.float32, torch.float64):
        h = F.linear(torch.zeros(50, 4, dtype=dtype), weight(3, 4, dtype=dtype))
        assert (h * h).median() > torch.finfo(dtype).tiny


def test_mixed_rules_and_deterministic_partners():
    """A bias of another rule than its weight, and plain tensors in between."""
    x = uniform(6, 4)
    dense_bias = sites({"b": (3,)}, "dense")["b"].structured()
    assert type(dense_bias) is Tensor
    for rule in STRUCTURED:
        assert F.linear(x, weight(3, 4, rule=rule), dense_bias).shape == (6, 3)
        assert F.linear(x, uniform(3, 4), weight(3, rule=rule)).shape == (6, 3)
        assert F.linear(input=x, weight=weight(3, 4, rule=rule), bias=None).shape == (6, 3)
    w, b = weight(3, 4, rule="local"), weight(3, rule="flipout")
    assert F.linear(x, w, b).shape == (6, 3)


def test_layout_splits_and_joins():
    layout = Layout({"a": torch.Size([2, 3]), "b": torch.Size([]), "c": torch.Size([4])})
    flat = torch.arange(11.0)
    a, b, c = layout.split(flat)
    assert (a.shape, b.shape, c.shape) == ((2, 3), (), (4,))
    assert torch.equal(layout.join({"c": c, "a": a, "b": b}), flat)


def test_normal_weight_is_an_ordinary_distribution():
    site = sites({"v": (2,), "w": (3, 2)})["w"]
    same = dist.Normal(site.loc, site.scale).to_event(2)
    assert (site.batch_shape, site.event_shape) == (same.batch_shape, same.event_shape)
    assert site.rsample().shape == (3, 2)
    draws = site.sample((5000,))
    assert draws.shape == (5000, 3, 2)
    assert not draws.requires_grad
    assert_mean(draws, site.loc, 100)
    assert_mean((draws - site.loc).square(), site.scale.square(), 100, "variance")
    torch.testing.assert_close(site.log_prob(draws[:3]), same.log_prob(draws[:3]))
    assert site.expand((4,)).sample().shape == (4, 3, 2)
    assert site.has_rsample
    assert site.support.check(draws).all()


def priors() -> dict[str, dist.Distribution]:
    flat = torch.rand(8, dtype=torch.float64) + 0.5
    return {
        "one normal": dist.Normal(torch.tensor(0.3).double(), torch.tensor(0.7).double()),
        "flat normal": dist.Normal(flat - 1, flat),
        "one laplace": dist.Laplace(torch.tensor(0.3).double(), torch.tensor(0.7).double()),
        "flat laplace": dist.Laplace(flat - 1, flat),
    }


@pytest.mark.parametrize("name", ["one normal", "flat normal", "one laplace", "flat laplace"])
def test_divergences_of_blocks_and_of_their_sites_equal_quadrature(name):
    layout = Layout({"a": torch.Size([2, 3]), "b": torch.Size([2])})
    q = NormalBlock(torch.randn(8).double(), torch.randn(8).double() - 1, layout, ["local", "dense"])
    p = Block(priors()[name], layout)
    # sum_i of the integral of q log(q/p), by a fine trapezoid rule
    scale = q.joint.scale
    grid = q.joint.loc + scale * torch.linspace(-9, 9, 200_001, dtype=torch.float64)[:, None]
    integrand = q.joint.log_prob(grid).exp() * (q.joint.log_prob(grid) - p.joint.log_prob(grid))
    exact = (torch.trapezoid(integrand, dim=0) * scale * 18 / 200_000).sum()
    torch.testing.assert_close(kl_divergence(q.joint, p.joint).sum(), exact, rtol=1e-7, atol=1e-7)
    by_site = sum(kl_divergence(a, b) for (_, a), (_, b) in zip(q.sites(), p.sites(), strict=True))
    torch.testing.assert_close(by_site, exact, rtol=1e-7, atol=1e-7)


def test_flat_normal_expands_into_an_ordinary_normal():
    q = FlatNormal(torch.zeros(3), torch.log(torch.tensor([0.5, 1.0, 2.0])))
    torch.testing.assert_close(q.variance, torch.tensor([0.25, 1.0, 4.0]))
    assert q.expand((2, 3)).sample().shape == (2, 3)
    torch.testing.assert_close(q.log_prob(torch.ones(3)), dist.Normal(0.0, q.scale).log_prob(torch.ones(3)))


def test_delta_block_hands_out_its_points():
    block = DeltaBlock(torch.arange(5.0), Layout({"a": torch.Size([2, 2]), "b": torch.Size([])}))
    values = {name: site.rsample() for name, site in block.sites()}
    assert torch.equal(values["a"], torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    assert values["b"] == 4.0
    assert all(site.block is block and not site.batch_shape for _, site in block.sites())
