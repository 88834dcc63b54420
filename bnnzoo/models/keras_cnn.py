"""The convolutional network of Keras' MNIST example."""

from torch import Tensor, nn

from bnnzoo.models.arguments import fraction, whole

KERNEL = 3


class KerasCNN(nn.Module):
    """The network of Keras' MNIST example, as the BB-alpha paper has it (Li and Gal 2017, section 5.2).

    Two convolutions of 3x3 without padding, each followed by ReLU, 2x2 max pooling, then a hidden layer with ReLU and
    the output layer; dropout before each of the two dense layers. Weights are named `layers.0.weight`,
    `layers.2.weight` (convolutions), `layers.7.weight` and `layers.10.weight` (dense; 6 and 8 without dropout).

    Args:
        in_channels: Channels of the images: 1 for gray, 3 for RGB.
        num_classes: Outputs, at least 1.
        filters: Filters of each of the two convolutions; 32 in the paper.
        hidden: Units of the hidden layer; 100 in the paper (128 in Keras' example).
        image_size: Height and width of the (square) images, in pixels, at least 6.
        dropout: Probability, from 0 to below 1, that an input of a dense layer is dropped; 0.5 in the paper, 0 puts no
            `nn.Dropout` in.

    Raises:
        ValueError: A size that is no whole number or too small, or a dropout rate out of range.

    Example:
        >>> import torch
        >>> KerasCNN()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        filters: int = 32,
        hidden: int = 100,
        image_size: int = 28,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.in_channels = whole("KerasCNN", "in_channels", in_channels)
        self.num_classes = whole("KerasCNN", "num_classes", num_classes)
        self.filters = whole("KerasCNN", "filters", filters)
        self.hidden = whole("KerasCNN", "hidden", hidden)
        # Below 6 pixels nothing is left after the pooling.
        self.image_size = whole("KerasCNN", "image_size", image_size, minimum=6)
        self.dropout = fraction("KerasCNN", "dropout", dropout)
        side = (self.image_size - 2 * (KERNEL - 1)) // 2
        self.layers = nn.Sequential(
            nn.Conv2d(self.in_channels, self.filters, KERNEL),
            nn.ReLU(),
            nn.Conv2d(self.filters, self.filters, KERNEL),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            *self._drop(),
            nn.Linear(self.filters * side * side, self.hidden),
            nn.ReLU(),
            *self._drop(),
            nn.Linear(self.hidden, self.num_classes),
        )

    def _drop(self) -> list[nn.Module]:
        return [nn.Dropout(self.dropout)] if self.dropout else []

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits.

        Args:
            x: Images [N, in_channels, image_size, image_size].

        Returns:
            Raw logits [N, num_classes].
        """
        return self.layers(x)
