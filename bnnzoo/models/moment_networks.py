"""The two convolutional networks of the moment propagation paper."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from bnnzoo.models.arguments import fraction, whole
from bnnzoo.moments import units

#: Activations by name.
MOMENT_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "logistic": nn.Sigmoid,
    "bernoulli": lambda: units.LogisticBernoulli(),
}


class _NormalizedCNN(nn.Module):
    """Convolutions without padding, each followed by batch normalization and all but the last by an activation.

    Args:
        in_channels: Channels of the images.
        num_classes: Outputs.
        depths: Filters of the convolutions but the last.
        kernels: Kernel sizes of all.
        strides: Strides of all.
        activation: Name in `MOMENT_ACTIVATIONS`.
        dropout: Rate of dropout after each activation; 0 puts no dropout layer in.
    """

    kernels: Sequence[int]
    strides: Sequence[int]
    depths: Sequence[int]

    def __init__(self, in_channels: int, num_classes: int, activation: str, dropout: float, width: float) -> None:
        super().__init__()
        name = type(self).__name__
        self.in_channels = whole(name, "in_channels", in_channels)
        self.num_classes = whole(name, "num_classes", num_classes)
        if activation not in MOMENT_ACTIVATIONS:
            raise ValueError(
                f"{name}: activation must be one of {', '.join(MOMENT_ACTIVATIONS)}; given: {activation!r}"
            )
        self.activation = activation
        self.dropout = fraction(name, "dropout", dropout)
        if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < float("inf"):
            raise ValueError(f"{name}: width must be a number above 0; given: {width!r}")
        self.width = width
        sizes = [self.in_channels, *(max(1, round(width * depth)) for depth in self.depths), self.num_classes]
        layers: list[nn.Module] = []
        columns: dict[str, str] = {}
        for index, (kernel, stride) in enumerate(zip(self.kernels, self.strides, strict=True)):
            # what follows the convolution takes its bias out again
            layers.append(nn.Conv2d(sizes[index], sizes[index + 1], kernel, stride, bias=False))
            layers.append(nn.BatchNorm2d(sizes[index + 1]))
            columns[f"C{index + 1}"] = f"layers.{len(layers) - 1}"
            if index < len(self.kernels) - 1:
                layers.append(MOMENT_ACTIVATIONS[activation]())
                if self.dropout:
                    layers.append(nn.Dropout(self.dropout))
                columns[f"A{index + 1}"] = f"layers.{len(layers) - 1}"
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.layers = nn.Sequential(*layers)
        #: The columns of the paper's tables by the module whose output they are: a convolution with its normalization
        #: (C1, ...), an activation with its dropout (A1, ...).
        self.columns = columns

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits.

        Args:
            x: Images [N, in_channels, H, W].

        Returns:
            Raw logits [N, num_classes].
        """
        return self.layers(x)


class MomentLeNet(_NormalizedCNN):
    """LeNet of the moment propagation paper (Shekhovtsov and Flach 2018, appendix D.4).

    Convolutions of 5x5 with stride 2 (32 and 64 filters), 4x4 (50) and 1x1, without padding or bias, each followed by
    batch normalization, and all but the last by an activation and dropout. Images of 28x28 leave one pixel at the end;
    larger ones are averaged over what they leave.

    Args:
        in_channels: Channels of the images: 1 for gray, 3 for RGB.
        num_classes: Outputs, at least 1.
        activation: `"leaky_relu"` (slope 0.01), `"logistic"` (the sigmoid) or `"bernoulli"`
            (`moments.units.LogisticBernoulli`).
        dropout: Probability, from 0 to below 1, that a unit is dropped after its activation; 0.2 in the paper, 0 puts
            no `nn.Dropout` in.
        width: Factor above 0 on the numbers of filters, which are rounded, at least 1.

    Attributes:
        columns: Of the paper's tables: the module path by name, C1, A1, C2, ...: a convolution with its
            normalization, an activation with its dropout. For `evaluation.moment_accuracy(layers=...)`.

    Raises:
        ValueError: An argument out of range, or an unknown activation.

    Example:
        >>> import torch
        >>> MomentLeNet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    kernels = (5, 5, 4, 1)
    strides = (2, 2, 1, 1)
    depths = (32, 64, 50)

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        activation: str = "leaky_relu",
        dropout: float = 0.0,
        width: float = 1.0,
    ) -> None:
        super().__init__(in_channels, num_classes, activation, dropout, width)


class MomentCIFARNet(_NormalizedCNN):
    """The network for CIFAR-10 of the moment propagation paper (Shekhovtsov and Flach 2018, appendix D.4).

    Seven convolutions of 3x3 (the third and sixth with stride 2) and two of 1x1, with 96, 96, 96 and five times 192
    filters before the last, without padding or bias, each followed by batch normalization, and all but the last by an
    activation and dropout; then the mean over the pixels that are left, four of 32x32.

    Args:
        in_channels: As of `MomentLeNet`.
        num_classes: As of `MomentLeNet`.
        activation: As of `MomentLeNet`.
        dropout: As of `MomentLeNet`.
        width: As of `MomentLeNet`; 1 in the paper.

    Attributes:
        columns: As of `MomentLeNet`.

    Raises:
        ValueError: An argument out of range, or an unknown activation.

    Example:
        >>> import torch
        >>> MomentCIFARNet(width=0.25)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    kernels = (3, 3, 3, 3, 3, 3, 3, 1, 1)
    strides = (1, 1, 2, 1, 1, 2, 1, 1, 1)
    depths = (96, 96, 96, 192, 192, 192, 192, 192)

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        activation: str = "leaky_relu",
        dropout: float = 0.0,
        width: float = 1.0,
    ) -> None:
        super().__init__(in_channels, num_classes, activation, dropout, width)
