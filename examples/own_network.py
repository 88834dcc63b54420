"""A network of your own, declared Bayesian from outside: convolutions on the digits, priors by layer, ArviZ.

python examples/own_network.py
"""

import argparse

import torch
from torch import nn

from bnnzoo import BayesianNetwork, data, evaluation, fit, guides, likelihoods, objectives, priors


class Residual(nn.Module):
    """A small convolutional network for 8x8 images; nothing in it knows of Bayes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.block = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits [N, 10] for images [N, 1, 8, 8]."""
        x = self.stem(x).relu()
        x = x + self.block(x).relu()
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))


def main() -> None:
    """Fits the network to the digits, scores it, and shows where it is unsure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="passes over the data")
    options = parser.parse_args()
    split = data.load("digits").split(test_size=0.2, seed=0)
    torch.manual_seed(0)  # the network's initial values
    # Biases are learned by maximum likelihood; a layer's weights get a prior by name, the others by type.
    rules = {"*.bias": None, "head.weight": priors.Laplace(0.0, 0.5), nn.Conv2d: priors.He()}
    bnn = BayesianNetwork(Residual(), likelihoods.Categorical(), prior=rules)
    # Local reparameterization where it is free, plain weight samples in convolutions.
    guide = guides.MeanField(bnn, init_scale=0.02, sampling={"head.*": "local", "*": "dense"})
    annealed = objectives.ELBO(kl_weight=objectives.KLAnnealing(epochs=options.epochs / 3))
    posterior = fit(bnn, guide, split.train, objective=annealed, epochs=options.epochs, batch_size=100, lr=3e-3)
    prediction = posterior.predict(split.test.x, num_samples=50)
    print(evaluation.score(prediction, split.test.y).to_pandas().T.round(3))
    right = prediction.classes == split.test.y
    if not right.all():
        print(
            f"entropy where right {prediction.entropy[right].mean():.2f} nats, "
            f"where wrong {prediction.entropy[~right].mean():.2f} nats"
        )
    idata = posterior.to_arviz(split.test, num_samples=100)
    print(idata["posterior"]["head.weight"].dims, float(idata["posterior"]["head.weight"].std()))


if __name__ == "__main__":
    main()
