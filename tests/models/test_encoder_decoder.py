"""EncoderDecoder: SegNet's unpooling, shapes, where dropout is, and clear errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnnzoo import models
from bnnzoo.models.encoder_decoder import _unpool


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unpooling_is_torch_s(dtype):
    pooled, indices = F.max_pool2d(torch.randn(3, 4, 6, 10, dtype=dtype), 2, return_indices=True)
    x = torch.randn_like(pooled)
    torch.testing.assert_close(_unpool(x, indices), F.max_unpool2d(x, indices, 2), rtol=0, atol=0)


def test_it_computes_a_segnet():
    net = models.EncoderDecoder(3, num_classes=4, width=2, depth=2).eval()
    x = torch.randn(2, 3, 8, 12)
    e, d = net.encoder, net.decoder
    h, first = F.max_pool2d(e[0](x), 2, return_indices=True)
    h, second = F.max_pool2d(e[1](h), 2, return_indices=True)
    h = d[0](F.max_unpool2d(h, second, 2))
    h = d[1](F.max_unpool2d(h, first, 2))
    torch.testing.assert_close(net(x), net.head(h))


def test_the_decoder_mirrors_the_encoder():
    net = models.EncoderDecoder(3, num_classes=5, width=4, depth=3)
    sizes = [(m.in_channels, m.out_channels) for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert sizes == [(3, 4), (4, 8), (8, 16), (16, 8), (8, 4), (4, 4), (4, 5)]
    for unit in [*net.encoder, *net.decoder]:
        assert [type(m).__name__ for m in unit] == ["Conv2d", "BatchNorm2d", "ReLU"]
        assert unit[0].bias is None


def test_it_is_small():
    assert sum(p.numel() for p in models.EncoderDecoder().parameters()) < 20_000


@pytest.mark.parametrize(("depth", "shape"), [(1, (2, 6)), (2, (16, 24)), (3, (8, 8))])
def test_every_pixel_gets_logits(depth, shape):
    assert models.EncoderDecoder(1, 7, width=2, depth=depth)(torch.randn(3, 1, *shape)).shape == (3, 7, *shape)


def test_dropout_is_before_every_convolution_but_the_first():
    net = models.EncoderDecoder(3, width=2, depth=2, dropout=0.4)
    order = [type(m).__name__ for m in net.modules() if isinstance(m, nn.Conv2d | nn.Dropout2d)]
    assert order == ["Conv2d", *["Dropout2d", "Conv2d"] * 4]
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout2d)} == {0.4}


@pytest.mark.parametrize("shape", [(10, 12), (12, 10)])
def test_a_size_that_cannot_be_halved_is_refused(shape):
    net = models.EncoderDecoder(depth=2)
    with pytest.raises(ValueError, match=rf"depth=2\): .* divisible by 4; given: {shape[0]} x {shape[1]}"):
        net(torch.zeros(1, 3, *shape))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"in_channels": 0}, "EncoderDecoder: in_channels .* given: 0"),
        ({"num_classes": 0}, "num_classes .* given: 0"),
        ({"width": 1.5}, "width .* given: 1.5"),
        ({"depth": 0}, "depth must be a whole number of at least 1; given: 0"),
        ({"dropout": 1.0}, "dropout must be a number from 0 to below 1; given: 1.0"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        models.EncoderDecoder(**arguments)
