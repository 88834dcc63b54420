"""The multilayer perceptron."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from bnnzoo.models.arguments import flag, fraction, whole, wholes

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


class MLP(nn.Module):
    """A multilayer perceptron: linear layers with an activation between them, raw outputs.

    Weights are named `layers.0.weight` [hidden[0], in_features], `layers.0.bias`, `layers.2.weight`, ...
    (the activations take the odd places; batch normalization and dropout take places of their own). Inputs may have
    more dimensions than two: an image batch [N, 1, 28, 28] goes into `MLP(784, 10)` flattened.

    Each hidden layer is: linear, batch normalization, activation, dropout. Both options are where the networks of the
    MCBN paper (Teye et al. 2018, sections 3.2 and 4.3) have them: the batch normalizes what a hidden layer's linear map
    returns, which then needs no bias; dropout acts on the input of every linear layer but the first, whose inputs are
    the data.

    Args:
        in_features: Input features Q, at least 1.
        out_features: Outputs K, at least 1: the targets of a regression, the classes of a classification.
        hidden: Units of each hidden layer; `()` gives a linear model.
        activation: One of `relu`, `leaky_relu`, `elu`, `gelu`, `silu`, `softplus`, `tanh`, `sigmoid`, `identity`.
        batch_norm: Whether hidden layers have an `nn.BatchNorm1d`; their linear maps then have no bias.
        dropout: Probability, from 0 to below 1, that a hidden unit is dropped; 0 puts no `nn.Dropout` in.

    Raises:
        ValueError: A size below 1, an unknown activation, a dropout rate out of range, or batch normalization or
            dropout without a hidden layer.

    Example:
        >>> import torch
        >>> MLP(8, 1, hidden=(50, 50))(torch.zeros(32, 8)).shape
        torch.Size([32, 1])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (50, 50),
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.hidden = wholes("MLP", "hidden", hidden, "a sequence of layer sizes such as (50, 50)")
        if activation not in ACTIVATIONS:
            raise ValueError(f"MLP: activation must be one of {', '.join(ACTIVATIONS)}; given: {activation!r}")
        self.in_features = whole("MLP", "in_features", in_features)
        self.out_features = whole("MLP", "out_features", out_features)
        self.activation = activation
        self.batch_norm = flag("MLP", "batch_norm", batch_norm)
        self.dropout = fraction("MLP", "dropout", dropout)
        if not self.hidden and (self.batch_norm or self.dropout):
            raise ValueError("MLP: batch_norm and dropout act on hidden layers, and hidden=() has none")
        layers: list[nn.Module] = []
        size = self.in_features
        for units in self.hidden:
            layers.append(nn.Linear(size, units, bias=not self.batch_norm))
            if self.batch_norm:
                layers.append(nn.BatchNorm1d(units))
            layers.append(ACTIVATIONS[activation]())
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
            size = units
        self.layers = nn.Sequential(*layers, nn.Linear(size, self.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the outputs.

        Args:
            x: Inputs [..., in_features], or [N, ...] with `in_features` numbers a row. With batch normalization all
                leading dimensions together are the batch.

        Returns:
            Raw outputs [..., out_features].
        """
        if x.ndim > 2 and x.shape[-1] != self.in_features:
            x = x.flatten(1)
        if self.batch_norm and x.ndim > 2:
            return self.layers(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return self.layers(x)
