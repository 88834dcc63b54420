"""The multilayer perceptron."""

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}
"""Activations of `MLP` by name. Names, not modules, so that a saved posterior can rebuild its network."""


def whole(owner: str, name: str, value: object, minimum: int = 1) -> int:
    """Checks a count.

    Args:
        owner: Who asks, for the message.
        name: The argument's name, for the message.
        value: What was given.
        minimum: The smallest count allowed.

    Returns:
        The value as an `int` (NumPy integers pass).

    Raises:
        ValueError: The value is no whole number or is below `minimum`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < minimum:
        raise ValueError(f"{owner}: {name} must be a whole number of at least {minimum}; given: {value!r}")
    return value.__index__()


class MLP(nn.Module):
    """A multilayer perceptron: linear layers with an activation between them, raw outputs.

    Weights are named `layers.0.weight` [hidden[0], in_features], `layers.0.bias`, `layers.2.weight`, ...
    (the activations take the odd places). Inputs may have more dimensions than two: an image batch
    [N, 1, 28, 28] goes into `MLP(784, 10)` flattened.

    Args:
        in_features: Input features Q, at least 1.
        out_features: Outputs K, at least 1: the targets of a regression, the classes of a classification.
        hidden: Units of each hidden layer; `()` gives a linear model.
        activation: One of `relu`, `leaky_relu`, `elu`, `gelu`, `silu`, `softplus`, `tanh`, `sigmoid`, `identity`.

    Raises:
        ValueError: A size below 1, or an unknown activation.

    Example:
        >>> import torch
        >>> MLP(8, 1, hidden=(50, 50))(torch.zeros(32, 8)).shape
        torch.Size([32, 1])
    """

    def __init__(
        self, in_features: int, out_features: int, hidden: Sequence[int] = (50, 50), activation: str = "relu"
    ) -> None:
        super().__init__()
        if isinstance(hidden, str) or not isinstance(hidden, Sequence):
            raise ValueError(f"MLP: hidden must be a sequence of layer sizes such as (50, 50); given: {hidden!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"MLP: activation must be one of {', '.join(ACTIVATIONS)}; given: {activation!r}")
        self.in_features = whole("MLP", "in_features", in_features)
        self.out_features = whole("MLP", "out_features", out_features)
        self.hidden = tuple(whole("MLP", f"hidden[{i}]", size) for i, size in enumerate(hidden))
        self.activation = activation
        sizes = [self.in_features, *self.hidden, self.out_features]
        layers: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
        for before, after in itertools.pairwise(sizes[1:]):
            layers += [ACTIVATIONS[activation](), nn.Linear(before, after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the outputs.

        Args:
            x: Inputs [..., in_features], or [N, ...] with `in_features` numbers a row.

        Returns:
            Raw outputs [..., out_features].
        """
        if x.ndim > 2 and x.shape[-1] != self.in_features:
            x = x.flatten(1)
        return self.layers(x)
