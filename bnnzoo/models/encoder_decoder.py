"""An encoder-decoder for dense classification."""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from bnnzoo.models.arguments import fraction, whole


class EncoderDecoder(nn.Module):
    """A small Bayesian SegNet (Kendall et al. 2015): every pixel of an image gets logits of its own.

    The encoder has `depth` units, each a convolution of 3x3, batch normalization, ReLU and 2x2 max pooling; the decoder
    mirrors them, and each of its units first puts the numbers back to where the pooling of its counterpart took them
    from, zeros elsewhere. A convolution of 1x1 classifies the pixels. Unit i of `depth` has `width` 2^i channels.
    Convolutions before batch normalization have no bias.

    Weights are named `encoder.0.0.weight` (convolution), `encoder.0.1.weight` (batch normalization), ...,
    `decoder.0.0.weight` (the deepest), ..., `head.0.weight`; dropout comes first in its unit, which moves the others.
    Targets are labels [N, H, W], for `likelihoods.Categorical`.

    Args:
        in_channels: Channels of the images: 1 for gray, 3 for RGB.
        num_classes: Classes of a pixel, K, at least 1.
        width: Channels of the first unit, at least 1.
        depth: Units, at least 1: H and W must be divisible by 2^depth.
        dropout: Probability, from 0 to below 1, that an input channel of a convolution is dropped, for all convolutions
            but the first: after every unit, as in the paper's "Bayesian Encoder-Decoder" (0.5; single pixels there).
            0 puts no `nn.Dropout2d` in.

    Raises:
        ValueError: A size that is no whole number or too small, or a dropout rate out of range.

    Example:
        >>> import torch
        >>> EncoderDecoder(3, num_classes=4)(torch.zeros(2, 3, 16, 24)).shape
        torch.Size([2, 4, 16, 24])
    """

    def __init__(
        self, in_channels: int = 3, num_classes: int = 2, width: int = 16, depth: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.in_channels = whole("EncoderDecoder", "in_channels", in_channels)
        self.num_classes = whole("EncoderDecoder", "num_classes", num_classes)
        self.width = whole("EncoderDecoder", "width", width)
        self.depth = whole("EncoderDecoder", "depth", depth)
        self.dropout = fraction("EncoderDecoder", "dropout", dropout)
        sizes = [self.width * 2**unit for unit in range(self.depth)]
        first = _unit(self.in_channels, sizes[0], 0.0)
        self.encoder = nn.ModuleList([first, *(_unit(a, b, self.dropout) for a, b in itertools.pairwise(sizes))])
        backwards = itertools.pairwise([*sizes[::-1], self.width])
        self.decoder = nn.ModuleList(_unit(a, b, self.dropout) for a, b in backwards)
        self.head = nn.Sequential(*_drop(self.dropout), nn.Conv2d(self.width, self.num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits of every pixel.

        Args:
            x: Images [N, in_channels, H, W], with H and W divisible by 2^depth.

        Returns:
            Raw logits [N, num_classes, H, W].

        Raises:
            ValueError: H or W is not divisible by 2^depth.
        """
        check_size(x.shape[-2], x.shape[-1], self.depth)
        taken = []
        for unit in self.encoder:
            x, indices = F.max_pool2d(unit(x), 2, return_indices=True)
            taken.append(indices)
        for unit, indices in zip(self.decoder, reversed(taken), strict=True):
            x = unit(_unpool(x, indices))
        return self.head(x)


def check_size(height: int, width: int, depth: int) -> None:
    """Checks that images can be halved `depth` times.

    Args:
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        depth: Units of the encoder.

    Raises:
        ValueError: They cannot.
    """
    step = 2**depth
    if height % step or width % step or not (height and width):
        raise ValueError(
            f"EncoderDecoder(depth={depth}): height and width of the images must be divisible by {step}; given: "
            f"{height} x {width}"
        )


def _unit(in_channels: int, out_channels: int, dropout: float) -> nn.Module:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(*_drop(dropout), convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def _drop(rate: float) -> list[nn.Module]:
    return [nn.Dropout2d(rate)] if rate else []


def _unpool(x: Tensor, indices: Tensor) -> Tensor:
    """`F.max_unpool2d(x, indices, 2)`, by an operation that `torch.func.vmap` knows."""
    height, width = (2 * size for size in x.shape[-2:])
    empty = x.new_zeros(*x.shape[:2], height * width)
    return empty.scatter(2, indices.flatten(2), x.flatten(2)).unflatten(2, (height, width))
