"""Matrix products and `einsum` of values that depend on each other, weights with noise that elements share, casts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnnzoo import BayesianNetwork, guides, likelihoods
from bnnzoo.guides.masked_weight import InputUnits, MaskedWeight, UnitNoise
from bnnzoo.moments import Moments, NoRuleError, options, propagate
from bnnzoo.moments.origins import Origin
from bnnzoo.moments.propagation import entering
from bnnzoo.objectives import ELBO, MomentELBO
from tests.affine_maps import random_tensor

PRODUCTS = {
    "einsum": lambda x, y: torch.einsum("ij,ij->i", x, y),
    "einsum, with a certain factor": lambda x, y: torch.einsum("ij,kj,j->ik", x, y, torch.arange(3.0).double()),
    "matmul": torch.matmul,
    "mm": torch.mm,
    "bmm": lambda x, y: torch.bmm(x[None], y[None]),
    "linear": F.linear,
    "outer": lambda x, y: torch.outer(x[0], y[0]),
    "bilinear": lambda x, y: F.bilinear(x, y, torch.ones(1, 3, 3).double()),
}


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.t(), lambda x: x.view(3, 3)[:]])
@pytest.mark.parametrize("covariance", ["diagonal", "sensitivity"])
def test_a_product_of_a_value_with_itself_is_refused(product, view, covariance):
    x = entering(torch.randn(3, 3).double(), 0.5, covariance)
    with pytest.raises(NoRuleError, match="the same random value"):
        product(x, view(x))
    assert product(x, x.loc.clone()).shape == product(x, x.loc).shape


def test_it_is_refused_under_vmap_too():
    x = torch.randn(2, 3, 3)

    def run(mean):
        value = Moments(mean, 0.5)
        return torch.matmul(value, value.mT).loc

    with pytest.raises(NoRuleError, match="the same random value"):
        torch.func.vmap(run)(x)


def test_the_fallback_serves_a_product_of_a_value_with_itself():
    x = Moments(torch.randn(3, 3).double(), 1e-6)
    with options(fallback="linearize"):
        found = torch.einsum("ij,ij->i", x, x)
    torch.testing.assert_close(found.variance, 4e-6 * x.loc.square().sum(1))
    with options(fallback="linearize"):
        torch.testing.assert_close(torch.matmul(x, x).loc, x.loc @ x.loc)


def test_parts_of_one_value_that_share_nothing_are_independent():
    x = random_tensor(4, 6)
    query, key = x.chunk(2, 1)
    found = query @ key.t()
    torch.testing.assert_close(found.loc, query.loc @ key.loc.t())
    exact = query.variance @ key.loc.square().t() + query.second_moment @ key.variance.t()
    torch.testing.assert_close(found.variance, exact)
    torch.testing.assert_close(
        torch.mul(x[:, :3], x[:, 1:4]).loc, x.loc[:, :3] * x.loc[:, 1:4]
    )  # element by element they differ


def test_products_of_views_whose_elements_meet_themselves_are_refused():
    x = random_tensor(3, 3)
    for product in (
        lambda: x * x.t(),
        lambda: x.unsqueeze(-1) * x.unsqueeze(-2),
        lambda: x * x.view(3, 3),
    ):
        with pytest.raises(NoRuleError, match="the same random value"):
            product()


class Free(nn.Module):
    """A network that uses its weight as it likes."""

    def __init__(self, use):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
        self.use = use

    def forward(self, x):
        return self.use(x, self.w)


TWICE = {
    "layers": lambda x, w: F.linear(F.linear(x, w), w),
    "matrices": lambda x, w: x @ w @ w.t(),
    "the gram matrix": lambda x, w: x @ (w @ w.t()),
    "scaled": lambda x, w: F.linear(F.linear(x, 2 * w), w),
    "one that is made of it": lambda x, w: (lambda v: F.linear(F.linear(x, v), v))(2 * w),
    "its norm": lambda x, w: F.linear(x, w * w.square().sum(1, keepdim=True)),
}
ONCE = {
    "layer": F.linear,
    "matrix": lambda x, w: x @ w.t(),
    "scaled": lambda x, w: F.linear(x, 2 * w),
    "its parts": lambda x, w: torch.cat([F.linear(x, w[:1]), F.linear(x, w[1:])], 1),
}


@pytest.mark.parametrize("use", TWICE.values(), ids=TWICE)
def test_a_weight_that_is_used_twice_is_refused(use):
    bnn = BayesianNetwork(Free(use), likelihoods.Gaussian(0.5))
    guide, x, y = guides.MomentPropagation(bnn), torch.randn(4, 3), torch.randn(4, 3)
    with pytest.raises(NoRuleError, match=r"the random weight 'w' is used more|same random value"):
        MomentELBO().loss(bnn, guide, x, y)
    assert isinstance(ELBO().loss(bnn, guide, x, y), float)


def test_what_several_weights_make_counts_too():
    a, b = random_tensor(3, 2), random_tensor(2, 3)
    a.origin, b.origin = Origin("a"), Origin("b")
    w = a @ b
    F.linear(random_tensor(4, 3), w)
    with pytest.raises(NoRuleError, match="'a and b' is used more than once"):
        F.linear(random_tensor(4, 3), w)


@pytest.mark.parametrize("use", ONCE.values(), ids=ONCE)
def test_a_weight_that_is_used_once_is_not(use):
    bnn = BayesianNetwork(Free(use), likelihoods.Gaussian(0.5))
    guide, x = guides.MomentPropagation(bnn), torch.randn(4, 3)
    y = bnn.network(x).detach()
    assert MomentELBO().loss(bnn, guide, x, y) == MomentELBO().loss(bnn, guide, x, y)


def test_tied_weights_are_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    bnn = BayesianNetwork(net, likelihoods.Gaussian(0.5))
    with pytest.raises(NoRuleError, match=r"'0\.weight' is used more than once"):
        MomentELBO().loss(bnn, guides.MomentPropagation(bnn), torch.randn(4, 3), torch.randn(4, 3))
    # points are the same in all places
    assert isinstance(MomentELBO().loss(bnn, guides.Map(bnn), torch.randn(4, 3), torch.randn(4, 3)), float)


WEIGHTED = {
    "@": (lambda x, w: x @ w, ("sensitivity", "full")),
    "mm": (lambda x, w: torch.mm(x, w.t()), ("sensitivity", "full")),
    "einsum": (lambda x, w: torch.einsum("ni,oi->no", x, w), ("sensitivity",)),
    "einsum, with a certain factor": (
        lambda x, w: torch.einsum("ni,oi,i->no", x, w, torch.arange(3.0).double()),
        (),
    ),
}


@pytest.mark.parametrize(("use", "ways"), WEIGHTED.values(), ids=WEIGHTED)
def test_random_weights_of_a_product_give_covariances(use, ways):
    x, w = torch.randn(4, 3).double(), random_tensor(3, 3)

    class Net(nn.Module):
        def forward(self, x):
            return use(x, w)

    plain = propagate(Net(), x)
    for way in ways:
        found = propagate(Net(), x, covariance=way)
        torch.testing.assert_close(found.variance, plain.variance)
        torch.testing.assert_close(found.covariance, torch.diag_embed(plain.variance))
    for way in {"sensitivity", "full"} - set(ways):
        with pytest.raises(NoRuleError, match=r"use covariance='sensitivity'|three and more factors"):
            propagate(Net(), x, covariance=way)


def test_a_random_table_gives_covariances():
    table, tokens = random_tensor(5, 2), torch.tensor([[0, 3, 0], [1, 2, 2]])

    class Net(nn.Module):
        def forward(self, x):
            return F.embedding(x, table)

    found = propagate(Net(), tokens, covariance="sensitivity")
    torch.testing.assert_close(found.loc, table.loc[tokens])
    torch.testing.assert_close(found.variance, table.variance[tokens])
    # the first and the third token of the first example are the same
    torch.testing.assert_close(found.covariance[0][0, 4], table.variance[0, 0])
    torch.testing.assert_close(found.covariance[0][0, 2], torch.zeros(()).double())


def dropout_weight():
    loc = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
    noise = UnitNoise("gaussian", InputUnits(loc.shape), torch.tensor(-1.0).double())
    return MaskedWeight("w", loc, noise).moments()


@pytest.mark.parametrize("covariance", ["sensitivity", "full"])
def test_the_noise_of_input_units_is_kept_or_refused(covariance):
    x, alpha = torch.randn(4, 3).double(), torch.tensor(-1.0).double().exp()
    w = dropout_weight()
    found = F.linear(entering(x, None, covariance), 2 * w).resolved()
    rows = 2 * w.loc * x.unsqueeze(1)
    torch.testing.assert_close(found.covariance, alpha * rows @ rows.mT)
    for use in (
        lambda x, w: x @ w.t(),
        lambda x, w: F.linear(x, w * torch.tensor([1.0, 0.0, 1.0]).double()),
        lambda x, w: F.linear(x, w + 1),
        lambda x, w: F.linear(x, w.t().t()),
        lambda x, w: torch.einsum("ni,oi->no", x, w),
    ):
        with pytest.raises(NoRuleError, match="share the noise of dropout"):
            use(entering(x, None, covariance), dropout_weight())
    # variances are the same
    plain = entering(x) @ w.t()
    torch.testing.assert_close(plain.variance, F.linear(entering(x), w).variance)


@pytest.mark.parametrize("cast", [lambda x: x.to(torch.int64), lambda x: x.type(torch.int32), lambda x: x.long()])
def test_casts_to_whole_numbers_are_refused(cast):
    for fallback in (None, "linearize"):
        with options(fallback=fallback), pytest.raises(NoRuleError):
            cast(random_tensor(2, 3))
    assert cast(Moments(torch.ones(2))).loc.eq(1).all()


def test_whole_numbers_have_no_variance():
    with pytest.raises(ValueError, match="floating-point"):
        Moments(torch.ones(3, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError, match="floating-point"):
        propagate(nn.Identity(), torch.ones(3, dtype=torch.int64), 0.5)
    assert Moments(torch.ones(3, dtype=torch.int64)).certain
    assert random_tensor(2).to(torch.float32).variance.dtype == torch.float32
