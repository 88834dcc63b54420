"""Network architectures, and the catalogue of complete recipes.

`catalogue` maps names to entries: `models.catalogue["mean-field/uci-mlp"].build(split)`.
"""

from bnnzoo.models.belief_network import SigmoidBeliefNetwork
from bnnzoo.models.catalogue import catalogue
from bnnzoo.models.encoder_decoder import EncoderDecoder
from bnnzoo.models.entry import Built, Entry
from bnnzoo.models.keras_cnn import KerasCNN
from bnnzoo.models.lenet import LeNet
from bnnzoo.models.mlp import ACTIVATIONS, MLP
from bnnzoo.models.moment_networks import MomentCIFARNet, MomentLeNet
from bnnzoo.models.resnet import ResNet

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Built",
    "EncoderDecoder",
    "Entry",
    "KerasCNN",
    "LeNet",
    "MomentCIFARNet",
    "MomentLeNet",
    "ResNet",
    "SigmoidBeliefNetwork",
    "catalogue",
]
