"""Network architectures, and the catalogue of complete recipes.

`catalogue` maps names to entries: `models.catalogue["mean-field/uci-mlp"].build(split)`.
"""

from bnnzoo.models.catalogue import catalogue
from bnnzoo.models.entry import Built, Entry
from bnnzoo.models.lenet import LeNet
from bnnzoo.models.mlp import ACTIVATIONS, MLP

__all__ = ["ACTIVATIONS", "MLP", "Built", "Entry", "LeNet", "catalogue"]
