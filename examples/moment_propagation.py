"""Means and variances instead of draws: through a network of your own, and as inference.

python examples/moment_propagation.py
"""

import argparse
import time

import torch
from torch import nn

from bnnzoo import BayesianNetwork, data, evaluation, fit, guides, likelihoods, moments, priors


def make_network() -> nn.Sequential:
    """A small convolutional network for 8x8 images; nothing in it knows of moments."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10),
    )  # fmt: skip


def show_layers(network: nn.Module, x: torch.Tensor, draws: int) -> None:
    """Prints the noise of every layer under noisy images and dropout, propagated beside sampled."""
    given = {"mean": x, "variance": 0.05}
    propagated = moments.per_layer(network, **given)
    sampled = moments.per_layer(network, **given, mode="sample", num_samples=draws)
    print(f"{'layer':>5} {'std':>8} {'of ' + str(draws) + ' passes':>16}")
    for name, layer in propagated.items():
        print(f"{name:>5} {layer.scale.mean():8.3f} {sampled[name].scale.mean():16.3f}")
    exact = moments.propagate(network, **given, covariance="sensitivity")
    print(f"the last one with its units' dependence (sensitivities): {exact.scale.mean():.3f}")


def main() -> None:
    """Fits the digits without a draw of the weights, predicts in one pass, and follows noise through the network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="passes over the data")
    parser.add_argument("--draws", type=int, default=200, help="what the moments are compared with")
    options = parser.parse_args()
    split = data.load("digits").split(test_size=0.2, seed=0)
    torch.manual_seed(0)  # the network's initial values
    bnn = BayesianNetwork(make_network(), likelihoods.Categorical(), prior=priors.He())
    # Trained by objectives.MomentELBO: the dropout layer's noise is propagated too.
    guide = guides.MomentPropagation(bnn)
    posterior = fit(bnn, guide, split.train, epochs=options.epochs, batch_size=100, lr=3e-3)
    for name, settings in {"moments": {}, f"{options.draws} draws": {"num_samples": options.draws}}.items():
        start = time.perf_counter()
        prediction = posterior.predict(split.test.x, **settings)
        scores = evaluation.score(prediction, split.test.y)  # of the one chain
        spent = time.perf_counter() - start
        print(f"{name}: accuracy {scores.accuracy.item():.3f}, log likelihood {scores.pll.item():.3f}, {spent:.2f} s")
    network = make_network()
    network.load_state_dict({name: value.mean((0, 1)) for name, value in posterior.sample(100).items()})
    show_layers(network, split.test.x[:50], options.draws)


if __name__ == "__main__":
    main()
