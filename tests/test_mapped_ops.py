"""Operations answered under vmap by ones with a batching rule: the same numbers as torch's own, mapped or not."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bnnzoo._vectorize import vectorize

CHAINS = 3


def recurrent(kind: type[nn.RNNBase], **options) -> nn.RNNBase:
    return kind(3, 4, **options).double()


RECURRENT = {
    "LSTM": recurrent(nn.LSTM),
    "LSTM, all options": recurrent(nn.LSTM, num_layers=3, bidirectional=True, batch_first=True, proj_size=2),
    "LSTM, projected, no bias": recurrent(nn.LSTM, proj_size=2, bias=False),
    "GRU": recurrent(nn.GRU),
    "GRU, all options": recurrent(nn.GRU, num_layers=2, bidirectional=True, batch_first=True, bias=False),
    "RNN": recurrent(nn.RNN, num_layers=2),
    "RNN, relu": recurrent(nn.RNN, nonlinearity="relu", bidirectional=True),
}


def mapped(module: nn.Module, values: dict[str, Tensor], *inputs: Tensor):
    return vectorize(lambda value: functional_call(module, value, inputs))(values)


def values_of(module: nn.Module) -> dict[str, Tensor]:
    return {
        n: torch.randn(CHAINS, *p.shape, dtype=torch.float64, requires_grad=True) for n, p in module.named_parameters()
    }


def check(module: nn.Module, *inputs: Tensor) -> None:
    """Outputs and gradients of a map over weights are those of a loop."""
    values = values_of(module)
    each = [functional_call(module, {n: v[chain] for n, v in values.items()}, inputs) for chain in range(CHAINS)]
    flat, _ = torch.utils._pytree.tree_flatten(each)
    per_chain = len(flat) // CHAINS
    expected = [torch.stack(flat[i::per_chain]) for i in range(per_chain)]
    outputs, _ = torch.utils._pytree.tree_flatten(mapped(module, values, *inputs))
    torch.testing.assert_close(outputs, expected)
    weights = [torch.randn_like(part) for part in expected]
    gradients = [
        torch.autograd.grad(sum((a * w).sum() for a, w in zip(parts, weights, strict=True)), list(values.values()))
        for parts in (outputs, expected)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name):
    check(RECURRENT[name], torch.randn(5, 2, 3, dtype=torch.float64))


def test_recurrent_layers_with_a_state_and_without_a_batch():
    x, h, c = (torch.randn(shape, dtype=torch.float64) for shape in ((5, 3), (1, 4), (1, 4)))
    check(RECURRENT["LSTM"], x, (h, c))
    check(RECURRENT["GRU"], x, h)


def test_dropout_between_recurrent_layers_in_training_only():
    layer = recurrent(nn.LSTM, num_layers=2, dropout=0.9)
    x, values = torch.randn(5, 2, 3, dtype=torch.float64), values_of(layer)
    first, second = mapped(layer, values, x)[0], mapped(layer, values, x)[0]
    assert not torch.allclose(first, second)
    check(layer.eval(), x)


def test_cells():
    x, h = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    check(nn.GRUCell(3, 4).double(), x, h)
    check(nn.GRUCell(3, 4, bias=False).double(), x, h)
    check(nn.LSTMCell(3, 4).double(), x, (h, h))
    check(nn.RNNCell(3, 4).double(), x, h)
    check(nn.RNNCell(3, 4, bias=False, nonlinearity="relu").double(), x, h)


@pytest.mark.parametrize("training", [True, False])
def test_attention(training):
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    check(nn.MultiheadAttention(4, 2, batch_first=True).double().train(training), x, x, x)
    check(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double().train(training), x)
    block = nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double().train(training)
    check(block, x, x + 1)


def test_plain_attention():
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x * self.w, x, x, is_causal=True)

    check(Attend(), torch.randn(2, 5, 4, dtype=torch.float64))


@pytest.mark.parametrize("bias", [True, False])
def test_bilinear(bias):
    a, b = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    check(nn.Bilinear(3, 4, 2, bias=bias).double(), a, b)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm(dim):
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 2, 2), dim=dim).double()
    check(layer, torch.randn(2, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.BatchNorm1d, (5, 3)), (nn.BatchNorm1d, (5, 3, 2)), (nn.BatchNorm2d, (5, 3, 2, 4))]
)
def test_batch_normalization_at_inference(kind, shape, affine):
    layer = kind(3, affine=affine, eps=0.1).double().eval()
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.1, 2.0)
    x = torch.randn(*shape, dtype=torch.float64)
    torch.testing.assert_close(vectorize(layer)(x[None])[0], layer(x))
    if affine:
        check(layer, x)
    # Running statistics are mapped too, as of chains.
    means, variances = torch.randn(CHAINS, 3, dtype=torch.float64), torch.rand(CHAINS, 3, dtype=torch.float64) + 0.1
    statistics = {"running_mean": means, "running_var": variances}
    outputs = vectorize(lambda value: functional_call(layer, value, (x,)))(statistics)
    expected = [functional_call(layer, {n: v[c] for n, v in statistics.items()}, (x,)) for c in range(CHAINS)]
    torch.testing.assert_close(outputs, torch.stack(expected))


def test_batch_normalization_in_training_stays_torchs():
    layer, twin = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
    x = torch.randn(CHAINS, 5, 3, dtype=torch.float64)
    state = {n: v.expand(CHAINS, *v.shape).clone() for n, v in layer.state_dict().items()}
    outputs = vectorize(lambda value, rows: functional_call(layer, value, (rows,)))(state, x)
    torch.testing.assert_close(outputs[1], twin(x[1]))
    torch.testing.assert_close(state["running_var"][1], twin.running_var)
    free = nn.BatchNorm1d(3, track_running_stats=False).double().eval()
    torch.testing.assert_close(vectorize(free)(x), torch.stack([free(rows) for rows in x]))
