"""Normalizing flows: invertible, with the right Jacobian, mapped by vmap."""

import copy

import pytest
import torch
from statistical import assert_mean
from torch import Tensor
from torch.func import functional_call, stack_module_state

from bnnzoo._vectorize import vectorize
from bnnzoo.guides.flows import FLOWS, ElementwiseAffine, Flow, Masked, fair_coins

KINDS = tuple(FLOWS)
COMPARISONS = 1000


def flow_of(kind: str, dim: int, length: int = 2, hidden: int = 7, size: float = 0.5, seed: int = 0) -> Flow:
    """A flow far from its start, in double precision."""
    torch.manual_seed(seed)
    flow = Flow(kind, dim, length, hidden).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return flow


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_has_its_inverse_and_its_log_determinant(kind, dim):
    flow = flow_of(kind, dim, length=3)
    x = torch.randn(4, dim).double()
    parts = flow.draw(x)
    assert len(parts) == (1 if dim == 1 else 3 if kind == "masked" else 5)
    for part in parts:
        y = part(x)
        assert not torch.equal(x, y)
        log_det = part.log_abs_det_jacobian(x, y)
        jacobian = torch.autograd.functional.jacobian(part._call, x)
        exact = torch.stack([torch.linalg.slogdet(jacobian[i, :, i]).logabsdet for i in range(4)])
        torch.testing.assert_close(log_det, exact)
        torch.testing.assert_close(part.log_abs_det_jacobian(x.clone(), y.clone()), exact)  # nothing cached
        if kind != "iaf" or dim == 1:  # Pyro's inverse of that makes single-precision zeros
            torch.testing.assert_close(part._inverse(y), x)
        x = y.detach()


def test_the_autoregressive_inverse():
    flow = flow_of("iaf", 4, length=1).float()
    x = torch.randn(3, 4)
    (part,) = flow.draw(x)
    torch.testing.assert_close(part._inverse(part(x)), x)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_log_determinant_of_a_whole_flow(kind, dim):
    flow = flow_of(kind, dim)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)  # the same masks
        return flow(x)

    for shape in ((dim,), (6, dim)):
        x = torch.randn(shape).double()
        y, log_det = run(x)
        assert y.shape == x.shape
        assert log_det.shape == x.shape[:-1]
        jacobian = torch.autograd.functional.jacobian(lambda v: run(v)[0], x)
        blocks = [jacobian] if len(shape) == 1 else [jacobian[i, :, i] for i in range(6)]
        exact = torch.stack([torch.linalg.slogdet(block).logabsdet for block in blocks]).view(x.shape[:-1])
        torch.testing.assert_close(log_det, exact)
        assert (log_det.abs() > 1e-3).any()


def test_a_masked_step_is_equation_6():
    torch.manual_seed(0)
    step = Masked(5, 4).double()
    x, m = torch.randn(3, 5).double(), torch.tensor([1.0, 0, 1, 0, 0]).double()
    h = torch.tanh((m * x) @ step.inner.weight.T + step.inner.bias)
    mu, s = ((h @ w.T + b) for w, b in zip(step.outer.weight.chunk(2), step.outer.bias.chunk(2), strict=True))
    sigma = torch.sigmoid(s)
    transform = step.condition(m)
    y = transform(x)
    torch.testing.assert_close(y, m * x + (1 - m) * (x * sigma + (1 - sigma) * mu))
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), ((1 - m) * sigma.log()).sum(-1))


@pytest.mark.parametrize("dim", [1, 2, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_flows_start_near_the_identity_in_every_reset(kind, dim):
    flow = flow_of(kind, dim, size=3.0)
    flow.reset_parameters()
    first = copy.deepcopy(flow)
    x = 0.1 * torch.randn(50, dim).double()
    y, log_det = flow(x)
    if kind != "masked":
        y = y.flip(-1)  # two steps, one flip
    assert (y - x).abs().max() < 0.2
    assert log_det.abs().max() <= 2 * 0.14 * dim
    flow.reset_parameters()
    changed = [not torch.equal(a, b) for a, b in zip(first.parameters(), flow.parameters(), strict=True)]
    assert any(changed) == (dim > 1)


@pytest.mark.parametrize("kind", KINDS)
def test_no_steps_are_the_identity(kind):
    for dim in (1, 3):
        x = torch.randn(2, dim)
        y, log_det = Flow(kind, dim, 0, 5)(x)
        assert torch.equal(x, y)
        assert torch.equal(log_det, torch.zeros(2))


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_mapped_flows_are_separate_flows(kind, dim):
    flows = [flow_of(kind, dim, seed=seed) for seed in range(3)]
    parameters, buffers = stack_module_state(flows)
    x = torch.randn(3, 4, dim).double()

    def run(own, buffers, x):
        def loss(own):
            y, log_det = functional_call(flows[0], (own, buffers), (x,))
            return (y.square().sum(-1) - log_det).sum(), (y, log_det)

        gradient, (y, log_det) = torch.func.grad(loss, has_aux=True)(own)
        return gradient, y, log_det

    gradients, y, log_det = vectorize(run)(parameters, buffers, x)
    assert all(value.isfinite().all() for value in gradients.values())
    for index, flow in enumerate(flows):
        if kind == "masked" and dim > 1:
            # Only what the own masks passed is known: some element changes and some do not.
            assert not torch.equal(y[index], y[index - 1])
            continue
        exact, exact_log_det = flow(x[index])
        torch.testing.assert_close(y[index], exact)
        torch.testing.assert_close(log_det[index], exact_log_det)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient(kind):
    flow = flow_of(kind, 6)
    y, log_det = flow(torch.randn(20, 6).double())
    (y.square().sum() - log_det.sum()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in flow.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_that_was_used_can_be_copied(kind):
    flow = flow_of(kind, 3)
    flow(torch.randn(2, 3).double())
    twin = copy.deepcopy(flow)
    twin.reset_parameters()
    assert not torch.equal(next(iter(twin.parameters())), next(iter(flow.parameters())))


def test_one_element_has_an_affine_flow():
    for kind in KINDS:
        (step,) = Flow(kind, 1, 3, 5).steps
        assert isinstance(step, ElementwiseAffine)


def test_masks_are_independent_fair_coins():
    torch.manual_seed(0)
    coins = fair_coins(torch.empty(4000, 2, 70))
    assert coins.dtype == torch.float32
    assert set(coins.unique().tolist()) == {0.0, 1.0}
    signs = (2 * coins - 1).double().flatten(1)
    assert_mean(signs, torch.zeros(140).double(), COMPARISONS)
    pairs = (signs[:, :, None] * signs[:, None, :]).flatten(1)
    expected = torch.eye(140).double().flatten()
    assert_mean(pairs, expected, 140**2)


def test_masks_are_drawn_in_every_call_and_for_every_step_row_and_mapped_copy():
    torch.manual_seed(0)
    flow, x = Flow("masked", 40, 2, 3), torch.zeros(2, 40)

    def masks(like: Tensor) -> Tensor:
        return torch.stack([part.mask for part in flow.draw(like)])

    seen = torch.cat([masks(x), masks(x), *vectorize(masks)(torch.zeros(2, 2, 40))]).flatten(0, -2)
    assert len({tuple(mask.tolist()) for mask in seen}) == len(seen) == 16


def test_a_closed_gate_has_a_finite_determinant():
    step = Masked(3, 4)
    with torch.no_grad():
        step.outer.weight.zero_()
        step.outer.bias[3:] = -200.0  # S(-200) is 0 in single precision
    x = torch.randn(2, 3, requires_grad=True)
    given = step.condition(torch.tensor([1.0, 0.0, 0.0]))
    log_det = given.log_abs_det_jacobian(x, given(x))
    torch.testing.assert_close(log_det, torch.full((2,), -400.0))
    log_det.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in step.parameters())
