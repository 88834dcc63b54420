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
