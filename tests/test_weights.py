"""Structured weights: pre-activations have the analytic moments under every rule, gradients are unbiased."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from statistical import assert_covariance, assert_equal_means, assert_mean
from torch import Tensor, nn
from torch.func import functional_call

from bnnzoo._vectorize import vectorize
from bnnzoo.weights import SAMPLINGS, Layout, NormalBlock

DRAWS = 8_000
#: More than the elements of all means and covariances compared in this file.
COMPARISONS = 1_000_000


class Q:
    """A factorized Gaussian over some of a module's parameters; structured draws of them."""

    def __init__(self, module: nn.Module, names: list[str], sampling: str | list[str], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.module = module
        self.layout = Layout({name: module.get_parameter(name).shape for name in names})
        self.sampling = [sampling] * len(names) if isinstance(sampling, str) else sampling
        self.loc = torch.randn(self.layout.size, generator=generator, dtype=torch.float64)
        self.log_scale = torch.empty(self.layout.size, dtype=torch.float64).uniform_(-1.0, 0.3, generator=generator)

    def values(self, loc: Tensor, log_scale: Tensor) -> dict[str, Tensor]:
        block = NormalBlock(loc, log_scale, self.layout, self.sampling)
        return {name: site.structured() for name, site in block.sites()}

    def output(self, x: Tensor, loc: Tensor | None = None, log_scale: Tensor | None = None) -> Tensor:
        values = self.values(self.loc if loc is None else loc, self.log_scale if log_scale is None else log_scale)
        return functional_call(self.module, values, (x,))

    def draws(self, x: Tensor, count: int = DRAWS) -> Tensor:
        """Independent passes, [count, *output]."""
        with torch.no_grad():
            return vectorize(lambda _: self.output(x))(torch.arange(count))

    def affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [D] of the flattened output and its Jacobian [D, P] in the random weights."""

        def at(flat: Tensor) -> Tensor:
            values = dict(zip(self.layout.names, self.layout.split(flat), strict=True))
            return functional_call(self.module, values, (x,)).flatten()

        with torch.no_grad():
            return at(self.loc), torch.func.jacrev(at)(self.loc)

    def covariance(self, x: Tensor, examples: int) -> Tensor:
        """What each rule must give; `examples` is how many the flattened output holds.

        Dense: everything. Flipout: the same within an example, nothing between examples. Local: variances only.
        """
        _, jacobian = self.affine(x)
        full = jacobian * (2 * self.log_scale).exp() @ jacobian.T
        rule = next((s for s in ("flipout", "local") if s in self.sampling), "dense")
        if rule == "local":
            return full.diag().diag()
        if rule == "flipout":
            return full * torch.block_diag(*[torch.ones(len(full) // examples, len(full) // examples)] * examples)
        return full


@dataclass
class Case:
    """A layer, an input and its number of examples."""

    layer: nn.Module
    shape: tuple[int, ...]
    examples: int

    def input(self) -> Tensor:
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        x.flatten()[0] = 0.0
        return x


CASES = {
    "linear": (lambda b: nn.Linear(4, 3, bias=b), (5, 4), 5),
    "linear unbatched": (lambda b: nn.Linear(4, 3, bias=b), (4,), 1),
    "linear, extra dimension": (lambda b: nn.Linear(3, 2, bias=b), (3, 4, 3), 3),
    "linear, two extra dimensions": (lambda b: nn.Linear(3, 2, bias=b), (2, 2, 2, 3), 2),
    "conv1d": (lambda b: nn.Conv1d(2, 3, 3, bias=b), (2, 2, 6), 2),
    "conv1d unbatched": (lambda b: nn.Conv1d(2, 3, 3, bias=b), (2, 6), 1),
    "conv1d grouped": (lambda b: nn.Conv1d(4, 6, 3, 2, 2, dilation=2, groups=2, bias=b), (2, 4, 7), 2),
    "conv1d same": (lambda b: nn.Conv1d(2, 2, 3, padding="same", bias=b), (2, 2, 4), 2),
    "conv1d circular": (lambda b: nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular", bias=b), (2, 2, 5), 2),
    "conv2d": (lambda b: nn.Conv2d(2, 2, 3, bias=b), (2, 2, 4, 5), 2),
    "conv2d unbatched": (lambda b: nn.Conv2d(2, 2, 3, bias=b), (2, 4, 5), 1),
    "conv2d options": (lambda b: nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 2), (1, 2), groups=2, bias=b), (2, 2, 5, 4), 2),
    "conv2d depthwise": (lambda b: nn.Conv2d(3, 3, 2, groups=3, bias=b), (2, 3, 3, 3), 2),
    "conv3d": (lambda b: nn.Conv3d(2, 2, 2, bias=b), (2, 2, 3, 3, 2), 2),
    "conv3d unbatched": (lambda b: nn.Conv3d(1, 2, 2, bias=b), (1, 3, 3, 2), 1),
    "conv3d options": (lambda b: nn.Conv3d(2, 2, 2, 2, 1, 2, groups=2, bias=b), (2, 2, 4, 3, 3), 2),
    "conv_transpose1d": (lambda b: nn.ConvTranspose1d(2, 3, 3, bias=b), (2, 2, 3), 2),
    "conv_transpose1d unbatched": (lambda b: nn.ConvTranspose1d(2, 3, 3, bias=b), (2, 3), 1),
    "conv_transpose1d options": (lambda b: nn.ConvTranspose1d(4, 6, 3, 3, 1, 2, 2, b, 2), (2, 4, 3), 2),
    "conv_transpose2d": (lambda b: nn.ConvTranspose2d(2, 2, 2, bias=b), (2, 2, 2, 3), 2),
    "conv_transpose2d unbatched": (lambda b: nn.ConvTranspose2d(2, 2, 2, bias=b), (2, 2, 3), 1),
    "conv_transpose2d options": (lambda b: nn.ConvTranspose2d(2, 4, (3, 2), 2, (1, 0), 1, 2, b), (2, 2, 2, 2), 2),
    "conv_transpose3d": (lambda b: nn.ConvTranspose3d(2, 2, 2, bias=b), (2, 2, 2, 1, 2), 2),
    "conv_transpose3d unbatched": (lambda b: nn.ConvTranspose3d(2, 2, 2, bias=b), (2, 2, 1, 2), 1),
    "conv_transpose3d options": (lambda b: nn.ConvTranspose3d(2, 2, 2, 2, 1, 1, 2, b, 2), (2, 2, 2, 2, 1), 2),
}

PLAIN = ["linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]


def case(name: str, bias: bool) -> Case:
    make, shape, examples = CASES[name]
    torch.manual_seed(1)
    return Case(make(bias).double(), shape, examples)


@pytest.mark.parametrize("rule", SAMPLINGS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CASES)
def test_preactivations_have_the_analytic_mean_and_covariance(name, bias, rule):
    given = case(name, bias)
    check_moments(given, Q(given.layer, ["weight", "bias"] if bias else ["weight"], rule))


@pytest.mark.parametrize("rule", SAMPLINGS)
@pytest.mark.parametrize("random", ["weight", "bias"])
@pytest.mark.parametrize("name", [*PLAIN, "linear, extra dimension", "conv2d options", "conv_transpose1d unbatched"])
def test_one_of_weight_and_bias_may_be_deterministic(name, random, rule):
    given = case(name, bias=True)
    check_moments(given, Q(given.layer, [random], rule))


def check_moments(given: Case, q: Q) -> None:
    x = given.input()
    torch.manual_seed(2)
    draws = q.draws(x)
    assert draws.shape[1:] == given.layer(x).shape
    mean, _ = q.affine(x)
    assert_mean(draws.flatten(1), mean, COMPARISONS)
    assert_covariance(draws.flatten(1), mean, q.covariance(x, given.examples), COMPARISONS)


def test_local_noise_is_independent_of_the_position_and_flipout_keeps_its_correlation():
    """What the two rules differ in, said once with numbers rather than by a matrix."""
    layer = nn.Conv1d(1, 1, 1, bias=False).double()
    x = torch.ones(2, 1, 2, dtype=torch.float64)

    def correlation(rule: str) -> Tensor:
        torch.manual_seed(3)
        return torch.corrcoef(Q(layer, ["weight"], rule).draws(x, 4000).flatten(1).T)

    torch.testing.assert_close(correlation("dense"), torch.ones(4, 4, dtype=torch.float64))
    within, between = correlation("flipout")[0, 1:3]
    assert within > 0.999
    assert abs(between) < 0.1
    assert (correlation("local") - torch.eye(4)).abs().max() < 0.1


@pytest.mark.parametrize("name", PLAIN)
def test_flipout_flips_input_channels_as_well_as_output_channels(name):
    """Two equal rows of C equal inputs: given the signs, their noises correlate by ρ, and E ρ² = 1/C.

    With signs on outputs alone, or one sign for all channels, the noises would be equal up to sign.
    """
    dimensions = int(name[-2]) if name.endswith("d") else 0
    kind = type(case(name, bias=False).layer)
    layer = kind(4, 1, *[1] * (dimensions > 0), bias=False).double()
    q = Q(layer, ["weight"], "flipout")
    q.log_scale = torch.zeros(4, dtype=torch.float64)
    x = torch.ones(2, 4, *[1] * dimensions, dtype=torch.float64)
    noise = q.draws(x).flatten(1) - q.loc.sum()
    products = (noise[:, 0] * noise[:, 1]).square() / 16
    # E (n n')² = σ⁴ (1 + 2 E ρ²)
    assert_mean(products[:, None], torch.tensor([1.5], dtype=torch.float64), COMPARISONS)


NODES, MASS = np.polynomial.hermite_e.hermegauss(40)
NODES, MASS = torch.from_numpy(NODES), torch.from_numpy(MASS / MASS.sum())
LOSSES = {
    "quadratic": lambda f: 0.5 * (f - 0.7).square(),
    "nonlinear": lambda f: F.softplus(2 * f) + torch.tanh(f).square(),
}
GRADIENT_CASES = ["linear", "linear, extra dimension", "conv2d options", "conv_transpose1d options"]


@pytest.mark.parametrize("rule", SAMPLINGS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradients_are_unbiased(name, loss, rule):
    """A sum of functions of single outputs depends on their means and variances only: one closed form for all rules."""
    given = case(name, bias=True)
    q = Q(given.layer, ["weight", "bias"], rule)
    q.log_scale = q.log_scale - 1.0
    x = given.input()

    def expected(loc: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
        def at(flat: Tensor) -> Tensor:
            values = dict(zip(q.layout.names, q.layout.split(flat), strict=True))
            return functional_call(q.module, values, (x,)).flatten()

        variance = torch.func.jacrev(at)(loc).square() @ (2 * log_scale).exp()
        points = at(loc)[:, None] + variance.sqrt()[:, None] * NODES
        return (LOSSES[loss](points) @ MASS).sum()

    def sampled(loc: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
        return LOSSES[loss](q.output(x, loc, log_scale)).sum()

    at = (q.loc, q.log_scale, x)
    exact = torch.func.grad(expected, argnums=(0, 1, 2))(*at)
    torch.manual_seed(4)
    draws = vectorize(lambda _: torch.func.grad(sampled, argnums=(0, 1, 2))(*at))(torch.arange(6000))
    for what, estimate, value in zip(("loc", "log_scale", "input"), draws, exact, strict=True):
        assert_mean(estimate, value, 10_000, f"gradient by {what}")


class Net(nn.Module):
    """A convolution and two dense layers, for rules in composition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3, padding=1)
        self.hidden = nn.Linear(8, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv(x)).flatten(1)
        return self.out(torch.tanh(self.hidden(h)))


def gradient_draws(net: nn.Module, rules: list[str], x: Tensor, loss, count: int) -> Tensor:
    q = Q(net, [name for name, _ in net.named_parameters()], rules)
    q.log_scale = q.log_scale - 1.5
    flat = torch.cat([q.loc * 0.5, q.log_scale])

    def sampled(flat: Tensor) -> Tensor:
        return loss(q.output(x, *flat.chunk(2)))

    return vectorize(lambda _: torch.func.grad(sampled)(flat))(torch.arange(count))


@pytest.mark.parametrize("rule", ["local", "flipout"])
def test_gradients_through_several_layers_agree_with_dense_ones(rule):
    """Cross entropy couples the outputs of an example. Under local, a convolution that feeds on has to be dense."""
    torch.manual_seed(1)
    net = Net().double()
    x = torch.randn(4, 1, 4, dtype=torch.float64)
    y = torch.tensor([0, 2, 1, 1])
    rules = [rule if rule == "flipout" or "conv" not in name else "dense" for name, _ in net.named_parameters()]
    structured = gradient_draws(net, rules, x, lambda f: F.cross_entropy(f, y, reduction="sum"), 10_000)
    dense = gradient_draws(net, ["dense"] * 6, x, lambda f: F.cross_entropy(f, y, reduction="sum"), 10_000)
    assert_equal_means(structured, dense, 10_000, "gradient")


def test_structured_gradients_vary_less_than_dense_ones():
    """Noise that examples do not share averages out over a minibatch; positions help local further."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 1)).double()
    x = torch.randn(32, 4, dtype=torch.float64)
    y = x.sum(1, keepdim=True)

    def variances(rule: str) -> Tensor:
        torch.manual_seed(2)
        draws = gradient_draws(net, [rule] * 4, x, lambda f: (f - y).square().sum(), 2000)
        return torch.stack([part.sum() for part in draws.var(0).split([50, 11, 50, 11])])

    dense = variances("dense")
    assert (variances("local") < 0.5 * dense).all()
    assert (variances("flipout") < 0.7 * dense).all()
