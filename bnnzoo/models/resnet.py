"""Residual networks for small images."""

import torch.nn.functional as F
from torch import Tensor, nn

from bnnzoo.models.arguments import fraction, whole

SHORTCUTS = ("A", "B")
STAGES = 3


class ZeroPadShortcut(nn.Module):
    """He et al.'s option A where the shape changes: every other pixel, and new channels of zeros; no weights.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, at least as many; half of the new ones come first.
        stride: Step between the pixels that are kept.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        extra = out_channels - in_channels
        self.channels = (extra // 2, extra - extra // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_channels, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.channels))


class ResidualBlock(nn.Module):
    """Two convolutions of 3x3 with batch normalization, and a shortcut: `f(norm2(conv2(f(norm1(conv1(x))))) + s(x))`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step of the first convolution.
        shortcut: `A` or `B`, see `ResNet`; the identity where the shape stays.
        slope: Slope of the activation below 0.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str, slope: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.activation1 = nn.LeakyReLU(slope)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.activation2 = nn.LeakyReLU(slope)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = ZeroPadShortcut(in_channels, out_channels, stride)
        else:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_channels, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        residual = self.norm2(self.conv2(self.activation1(self.norm1(self.conv1(x)))))
        return self.activation2(residual + self.shortcut(x))


class ResNet(nn.Module):
    """The residual network for CIFAR-10 of He et al. 2015 (Deep residual learning for image recognition, section 4.2).

    A convolution of 3x3, then three stages of n = (depth - 2) / 6 blocks with `width`, 2 `width` and 4 `width`
    channels, where the second and third stage halve height and width, the mean over all pixels, and the output layer.
    Every convolution is followed by batch normalization and has no bias. `ResNet()` is ResNet-32, with 464,154
    parameters, and the leaky ReLU of the MCBN paper (Teye et al. 2018, section 4.3), whose own code activates before
    the convolutions rather than after them. He et al. have `slope=0`.

    Weights are named `conv.weight`, `norm.weight`, `blocks.0.conv1.weight`, `blocks.0.norm1.weight`, ...,
    `head.weight`. Their initial values are torch's defaults, not He et al.'s: batch normalization takes the scale of a
    convolution's weights out again.

    Args:
        in_channels: Channels of the images: 1 for gray, 3 for RGB.
        num_classes: Outputs, at least 1.
        depth: Layers with weights, 6n + 2 with n of at least 1: 8, 14, 20, 26, 32, ...
        width: Channels of the first stage; 16 in the paper.
        shortcut: Where the shape changes, `A` takes every other pixel and pads the channels with zeros, `B` is a
            convolution of 1x1 with batch normalization.
        slope: Slope of the activations below 0, from 0 (ReLU) to below 1.

    Raises:
        ValueError: A size that is no whole number or too small, a depth that is not 6n + 2, an unknown shortcut, or a
            slope out of range.

    Example:
        >>> import torch
        >>> ResNet(depth=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        depth: int = 32,
        width: int = 16,
        shortcut: str = "A",
        slope: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels = whole("ResNet", "in_channels", in_channels)
        self.num_classes = whole("ResNet", "num_classes", num_classes)
        self.depth = whole("ResNet", "depth", depth, minimum=8)
        if (self.depth - 2) % (2 * STAGES):
            raise ValueError(f"ResNet: depth must be 6n + 2 (8, 14, 20, 26, 32, ...); given: {depth!r}")
        self.width = whole("ResNet", "width", width)
        if shortcut not in SHORTCUTS:
            raise ValueError(f"ResNet: shortcut must be one of {', '.join(SHORTCUTS)}; given: {shortcut!r}")
        self.shortcut = shortcut
        self.slope = fraction("ResNet", "slope", slope)
        self.conv = nn.Conv2d(self.in_channels, self.width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(self.width)
        self.activation = nn.LeakyReLU(self.slope)
        blocks = []
        channels = self.width
        for stage in range(STAGES):
            for block in range((self.depth - 2) // (2 * STAGES)):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(ResidualBlock(channels, self.width * 2**stage, stride, shortcut, self.slope))
                channels = self.width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, self.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits.

        Args:
            x: Images [N, in_channels, H, W] of any size.

        Returns:
            Raw logits [N, num_classes].
        """
        x = self.blocks(self.activation(self.norm(self.conv(x))))
        return self.head(self.pool(x).flatten(1))
