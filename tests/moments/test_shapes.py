"""Operations that move, copy and drop elements: exact, by their Jacobians."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnnzoo.moments import Moments, NoRuleError
from tests.affine_maps import assert_affine, random_tensor

MASK = torch.tensor([True, False, True, True])
INDEX = torch.tensor([[0, 2, 1, 1], [2, 0, 0, 2]])
PLAIN = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

# of one tensor [2, 3, 4]
ONE = {
    "view": lambda x: x.view(6, -1),
    "view_as": lambda x: x.view_as(torch.zeros(6, 4)),
    "reshape": lambda x: x.reshape(4, 6),
    "torch.reshape": lambda x: torch.reshape(x, (-1,)),
    "flatten": lambda x: x.flatten(1),
    "nn.Flatten": nn.Flatten(),
    "unflatten": lambda x: x.unflatten(2, (2, 2)),
    "nn.Unflatten": nn.Unflatten(2, (2, 2)),
    "ravel": torch.ravel,
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "permute": lambda x: x.permute(2, 0, 1),
    "transpose": lambda x: x.transpose(0, 1),
    "movedim": lambda x: torch.movedim(x, 0, -1),
    "swapaxes": lambda x: x.swapaxes(0, 2),
    "T": lambda x: x[0].T,
    "t": lambda x: x[0].t(),
    "mT": lambda x: x.mT,
    "contiguous": lambda x: x.mT.contiguous(),
    "clone": lambda x: x.clone(),
    "to": lambda x: x.to(torch.float64),
    "double": lambda x: x.double(),
    "type_as": lambda x: x.type_as(PLAIN),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 5, -1, -1),
    "broadcast_to": lambda x: torch.broadcast_to(x, (2, 2, 3, 4)),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "tile": lambda x: x.tile(2),
    "roll": lambda x: x.roll(1, -1),
    "flip": lambda x: x.flip([0, 2]),
    "rot90": lambda x: torch.rot90(x, 1, [1, 2]),
    "cat": lambda x: torch.cat([x, x.flip(0)], 1),
    "cat with a tensor": lambda x: torch.cat([x[0], PLAIN], -1),
    "stack": lambda x: torch.stack([x, x], 1),
    "hstack": lambda x: torch.hstack([x, x]),
    "chunk": lambda x: x.chunk(2, -1),
    "split": lambda x: x.split([1, 3], 2),
    "torch.split": lambda x: torch.split(x, 2, 1),
    "tensor_split": lambda x: torch.tensor_split(x, 3, 2),
    "unbind": lambda x: x.unbind(1),
    "rows": lambda x: list(x),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "select": lambda x: x.select(1, 2),
    "index": lambda x: x[1, ..., None, ::2],
    "index by a mask": lambda x: x[..., MASK],
    "index by a tensor": lambda x: x[:, INDEX],
    "index_select": lambda x: torch.index_select(x, 2, INDEX[0]),
    "gather": lambda x: x[0].gather(0, INDEX),
    "take_along_dim": lambda x: torch.take_along_dim(x[0], INDEX, 0),
    "masked_select": lambda x: x.flatten()[[3, 5, 5]],
    "diagonal": lambda x: x.diagonal(0, 1, 2),
    "diag_embed": lambda x: x.diag_embed(),
    "tril": lambda x: x.tril(),
    "unfold": lambda x: x.unfold(2, 2, 1),
    "F.unfold": lambda x: F.unfold(x.unsqueeze(1), 2, padding=1),
    "F.fold": lambda x: F.fold(x.reshape(1, 4, 6), (3, 4), 2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.reshape(1, 4, 2, 3), 2),
    "nn.PixelUnshuffle": lambda x: nn.PixelUnshuffle(2)(x.reshape(1, 1, 4, 6)),
    "channel_shuffle": lambda x: F.channel_shuffle(x.reshape(1, 4, 2, 3), 2),
    "F.pad": lambda x: F.pad(x, (1, 2), value=3.0),
    "F.pad, negative": lambda x: F.pad(x, (-1, 2, 1, 0)),
    "F.pad, reflect": lambda x: F.pad(x, (1, 2), "reflect"),
    "nn.ReplicationPad1d": nn.ReplicationPad1d(2),
    "nn.CircularPad1d": nn.CircularPad1d(2),
    "nn.ConstantPad1d": nn.ConstantPad1d(1, 7.0),
    "masked_fill": lambda x: x.masked_fill(MASK, -1e9),
    "masked_fill_": lambda x: x.clone().masked_fill_(MASK, -1e9),
    "where": lambda x: torch.where(MASK, x, 2.0),
    "where with a tensor": lambda x: torch.where(MASK, PLAIN, x),
    "x.where": lambda x: x.where(MASK, x.flip(0)),
    "index_fill": lambda x: x.index_fill(1, INDEX[0, :1], 2.0),
    "index_add": lambda x: x.index_add(1, INDEX[0], PLAIN.expand(2, 3, 4)[:, [0, 1, 2, 0]], alpha=2.0),
    "index_add into a tensor": lambda x: torch.zeros_like(PLAIN).index_add(0, INDEX[0, :3], x[0], alpha=2.0),
    "scatter": lambda x: torch.zeros_like(PLAIN).scatter(0, INDEX, x[0][:2]),
    "scatter a number": lambda x: x[0].scatter(0, INDEX, 2.0),
    "scatter a number by name": lambda x: x[0].scatter(0, INDEX, value=2.0),
    "scatter_add": lambda x: x[0].scatter_add(0, INDEX[:1].expand(2, 4), x[1][:2]),
    "fill": lambda x: torch.fill(x, 2.0) + x[0],
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nn.Upsample": lambda x: nn.Upsample((5, 7))(x.unsqueeze(0)),
    "linear": lambda x: F.interpolate(x, 7, mode="linear"),
    "linear, scaled": lambda x: F.interpolate(x, scale_factor=1.7, mode="linear", align_corners=True),
    "bilinear": lambda x: F.interpolate(x.unsqueeze(0), (5, 3), mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x.unsqueeze(0), scale_factor=(2.0, 1.5), mode="bicubic"),
    "bilinear, smaller": lambda x: F.interpolate(x.unsqueeze(0), (2, 2), mode="bilinear", antialias=True),
    "trilinear": lambda x: F.interpolate(x[None, None], (3, 2, 5), mode="trilinear"),
    "area": lambda x: F.interpolate(x, 3, mode="area"),
    "nn.UpsamplingBilinear2d": lambda x: nn.UpsamplingBilinear2d(scale_factor=2)(x.unsqueeze(0)),
}


@pytest.mark.parametrize("name", ONE)
def test_of_one_tensor(name):
    assert_affine(ONE[name], random_tensor(2, 3, 4))


TWO = {
    "cat": lambda x, y: torch.cat([x, y], 1),
    "concat of moments and a tensor": lambda x, y: torch.concat([x, PLAIN[:2], y]),
    "stack": lambda x, y: torch.stack((x, y), -1),
    "where": lambda x, y: torch.where(MASK, x, y),
    "x.where": lambda x, y: x.where(MASK, y),
    "masked_scatter": lambda x, y: x.masked_scatter(MASK, y),
    "scatter_add": lambda x, y: x.scatter_add(0, INDEX % 2, y),
    "broadcast_tensors": lambda x, y: torch.broadcast_tensors(x[0], y),
    "block_diag": lambda x, y: torch.block_diag(x, y),
}


@pytest.mark.parametrize("name", TWO)
def test_of_two_tensors(name):
    assert_affine(TWO[name], random_tensor(2, 4), random_tensor(2, 4, seed=1))


def test_detach_cuts_both_from_the_graph():
    mean, variance = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    x = Moments(mean * 1, variance * 1)
    for cut in (x.detach(), x.data):
        assert not cut.loc.requires_grad
        assert not cut.variance.requires_grad
    assert x.clone().variance.requires_grad


def test_precision_is_changed_for_both():
    x = random_tensor(2).float()
    assert x.dtype == x.loc.dtype == x.variance.dtype == torch.float32
    mixed = x + torch.zeros(2, dtype=torch.float64)
    assert mixed.loc.dtype == mixed.variance.dtype == torch.float64


def test_embedding_looks_up_rows_of_a_random_table():
    table, index = random_tensor(5, 3), torch.tensor([[0, 4], [4, 2]])
    for given in (index, Moments(index)):
        rows = F.embedding(given, table)
        torch.testing.assert_close(rows.loc, table.loc[index])
        torch.testing.assert_close(rows.variance, table.variance[index])
        torch.testing.assert_close(table[given].variance, table.variance[index])
    certain = nn.Embedding(5, 3)(Moments(index))
    assert certain.certain
    with pytest.raises(NoRuleError, match="random indices"):
        F.embedding(random_tensor(2), table)


def test_elements_are_written_in_place():
    x, y = random_tensor(3, 4), random_tensor(4, seed=1)
    original = x.clone()
    x[1] = y
    x[2, 0] = 5.0
    expected = torch.stack([original.variance[0], y.variance, original.variance[2]])
    expected[2, 0] = 0.0
    torch.testing.assert_close(x.variance, expected)
    torch.testing.assert_close(x.loc[1], y.loc)
    assert x.loc[2, 0] == 5
    assert original.loc[2, 0] != 5
    certain = Moments(torch.zeros(2, 4))
    certain[0] = y
    torch.testing.assert_close(
        certain.variance, torch.stack([y.variance, torch.zeros_like(y.variance)]), check_dtype=False
    )
    with pytest.raises(NoRuleError, match="cannot be written into a plain tensor"):
        torch.zeros(4)[:] = y


def test_views_run_under_vmap():
    x = random_tensor(5, 2, 3)

    def both(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        result = F.pad(Moments(mean, variance).T.reshape(2, 3)[:, 1:], (1, 0)).masked_fill(torch.eye(2, 3) > 0, 1.0)
        return result.loc, result.variance

    mapped = torch.func.vmap(both)(x.loc, x.variance)
    for k in range(5):
        for found, expected in zip(mapped, both(x.loc[k], x.variance[k]), strict=True):
            torch.testing.assert_close(found[k], expected)
