"""LeNet-5 as Caffe has it."""

from collections.abc import Sequence

from torch import Tensor, nn

from bnnzoo.models.mlp import whole

KERNEL = 5


class LeNet(nn.Module):
    """LeNet-5 in the version from Caffe, the network of the MNF paper (Louizos and Welling, 2017, section 4).

    Two convolutions of 5x5 without padding, each followed by ReLU and 2x2 max pooling, then a hidden layer with
    ReLU and the output layer. Weights are named `layers.0.weight`, `layers.3.weight` (convolutions),
    `layers.7.weight` and `layers.9.weight` (dense).

    Args:
        in_channels: Channels of the images: 1 for gray, 3 for RGB.
        num_classes: Outputs, at least 1.
        filters: Filters of the two convolutions; the paper's CIFAR-10 network has (192, 192).
        hidden: Units of the hidden layer; 1000 in the paper's CIFAR-10 network.
        image_size: Height and width of the (square) images, in pixels, at least 16.

    Raises:
        ValueError: A size that is no whole number or too small.

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
    ) -> None:
        super().__init__()
        if isinstance(filters, str) or not isinstance(filters, Sequence) or len(filters) != 2:
            raise ValueError(f"LeNet: filters must be the sizes of two layers such as (20, 50); given: {filters!r}")
        self.in_channels = whole("LeNet", "in_channels", in_channels)
        self.num_classes = whole("LeNet", "num_classes", num_classes)
        self.filters = tuple(whole("LeNet", f"filters[{i}]", size) for i, size in enumerate(filters))
        self.hidden = whole("LeNet", "hidden", hidden)
        # Below 16 pixels nothing is left after the second pooling.
        self.image_size = whole("LeNet", "image_size", image_size, minimum=16)
        side = self.image_size
        for _ in filters:
            side = (side - KERNEL + 1) // 2
        first, second = self.filters
        self.layers = nn.Sequential(
            nn.Conv2d(self.in_channels, first, KERNEL),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, KERNEL),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * side * side, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits.

        Args:
            x: Images [N, in_channels, image_size, image_size].

        Returns:
            Raw logits [N, num_classes].
        """
        return self.layers(x)
