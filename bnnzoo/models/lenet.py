"""LeNet-5 as Caffe has it."""

from collections.abc import Sequence

from torch import Tensor, nn

from bnnzoo.models.arguments import flag, fraction, whole, wholes

KERNEL = 5


class LeNet(nn.Module):
    """LeNet-5 in the version from Caffe, the network of the MNF paper (Louizos and Welling, 2017, section 4).

    Two convolutions of 5x5 without padding, each followed by ReLU and 2x2 max pooling, then a hidden layer with
    ReLU and the output layer. Weights are named `layers.0.weight`, `layers.3.weight` (convolutions),
    `layers.7.weight` and `layers.9.weight` (dense); batch normalization and dropout take places of their own, which
    moves those that follow.

    `LeNet(3, 5, (192, 192), 1000, 32)` is the paper's network for five classes of CIFAR-10.

    Args:
        in_channels: Channels of the images: 1 for gray, 3 for RGB.
        num_classes: Outputs, at least 1.
        filters: Filters of the two convolutions; the paper's CIFAR-10 network has (192, 192).
        hidden: Units of the hidden layer; 1000 in the paper's CIFAR-10 network.
        image_size: Height and width of the (square) images, in pixels, at least 16.
        dropout: Probability, from 0 to below 1, that an input of a layer is dropped, for all layers but the first:
            whole channels (`nn.Dropout2d`) before the second convolution, single numbers (`nn.Dropout`) before the two
            dense layers. That is noise on weights, which `guides.Dropout` can take over. The paper's dropout baseline
            (rate 0.5; Gal and Ghahramani 2015, Bayesian convolutional neural networks with Bernoulli approximate
            variational inference) drops in the same places, but single pixels, and before the pooling. 0 puts no
            dropout layer in.
        batch_norm: Whether both convolutions and the hidden layer, which then have no bias, are followed by batch
            normalization, before the ReLU.

    Raises:
        ValueError: A size that is no whole number or too small, or a dropout rate out of range.

    Example:
        >>> import torch
        >>> LeNet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        filters: Sequence[int] = (20, 50),
        hidden: int = 500,
        image_size: int = 28,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.filters = wholes("LeNet", "filters", filters, "the sizes of two layers such as (20, 50)", length=2)
        self.in_channels = whole("LeNet", "in_channels", in_channels)
        self.num_classes = whole("LeNet", "num_classes", num_classes)
        self.hidden = whole("LeNet", "hidden", hidden)
        # Below 16 pixels nothing is left after the second pooling.
        self.image_size = whole("LeNet", "image_size", image_size, minimum=16)
        self.dropout = fraction("LeNet", "dropout", dropout)
        self.batch_norm = flag("LeNet", "batch_norm", batch_norm)
        side = self.image_size
        for _ in self.filters:
            side = (side - KERNEL + 1) // 2
        first, second = self.filters
        bias = not self.batch_norm
        self.layers = nn.Sequential(
            nn.Conv2d(self.in_channels, first, KERNEL, bias=bias),
            *self._norm(nn.BatchNorm2d, first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            *self._drop(nn.Dropout2d),
            nn.Conv2d(first, second, KERNEL, bias=bias),
            *self._norm(nn.BatchNorm2d, second),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            *self._drop(nn.Dropout),
            nn.Linear(second * side * side, self.hidden, bias=bias),
            *self._norm(nn.BatchNorm1d, self.hidden),
            nn.ReLU(),
            *self._drop(nn.Dropout),
            nn.Linear(self.hidden, self.num_classes),
        )

    def _norm(self, kind: type[nn.Module], size: int) -> list[nn.Module]:
        return [kind(size)] if self.batch_norm else []

    def _drop(self, kind: type[nn.Module]) -> list[nn.Module]:
        return [kind(self.dropout)] if self.dropout else []

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits.

        Args:
            x: Images [N, in_channels, image_size, image_size].

        Returns:
            Raw logits [N, num_classes].
        """
        return self.layers(x)
