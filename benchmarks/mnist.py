"""LeNet on MNIST with a factorized Gaussian posterior: test error within a stated time on a CPU.

    BNNZOO_DATA=../shared/data python benchmarks/mnist.py --threads 2

The MNF paper's LeNet and its FFG posterior (standard normal prior; 0.9% test error there).
"""

import time
from functools import partial
from typing import Any

import torch
from common import describe, environment, parser, start, table, write
from torch import nn

from bnnzoo import BayesianNetwork, data, evaluation, fit, guides, likelihoods, models, objectives
from bnnzoo.training import Progression

SETTING: dict[str, Any] = {
    "init_scale": 0.02,
    "sampling": {nn.Conv2d: "dense", "*": "local"},  # local convolutions take twice the time
    "batch_size": 100,
    "lr": 2e-3,  # falls to 0 along a cosine, step by step of an epoch
    "kl_annealing": 0.5,  # the KL's weight rises from 0 to 1 over this share of the training
}

PAPER = 0.9
"""Test error of FFG in the MNF paper, in percent."""


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--epochs", type=int, default=6)
    options.add_argument("--draws", type=int, default=50, help="posterior draws of the test predictions")
    arguments = options.parse_args()
    for name in ("epochs", "draws"):
        if getattr(arguments, name) < 1:
            options.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.smoke:
        arguments.epochs, arguments.draws = 1, 2
    start(arguments)
    # Embedded digits of 8x8 pixels, enlarged, so that the smoke run needs no files.
    train, test = _digits() if arguments.smoke else data.load("mnist").split()
    bnn = BayesianNetwork(models.LeNet(), likelihoods.Categorical())
    epochs = arguments.epochs
    begin, used = time.perf_counter(), time.process_time()

    def progress(state: Progression) -> None:
        loss = state.history["loss"][0, -1]
        print(f"epoch {state.epoch} of {epochs}: loss {loss:.0f}, {time.perf_counter() - begin:.0f} s", flush=True)

    posterior = fit(
        bnn,
        guides.MeanField(bnn, init_scale=SETTING["init_scale"], sampling=SETTING["sampling"]),
        train,
        objective=objectives.ELBO(kl_weight=objectives.KLAnnealing(SETTING["kl_annealing"] * epochs)),
        epochs=epochs,
        batch_size=SETTING["batch_size"],
        lr=SETTING["lr"],
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        seed=arguments.seed,
        callback=progress,
        progress=False,
    )
    result = {"fit_seconds": time.perf_counter() - begin, "fit_cpu_seconds": time.process_time() - used}
    begin = time.perf_counter()
    prediction = posterior.predict(test.x, num_samples=arguments.draws)
    result |= evaluation.score(prediction, test.y)
    result["predict_seconds"] = time.perf_counter() - begin
    print("\n" + describe(environment(arguments)), "\n")
    header = ["epochs", "draws", "test error", "paper", "NLL", "ECE", "fit, s", "fit, CPU s", "predict, s"]
    row = [epochs, arguments.draws, f"{100 * result['error']:.2f}%", f"{PAPER}%", f"{result['nll']:.4f}"]
    row += [f"{result['ece']:.4f}", *(f"{result[k]:.0f}" for k in ("fit_seconds", "fit_cpu_seconds"))]
    print(table(header, [[*row, f"{result['predict_seconds']:.0f}"]]))
    write(arguments, result)


def _digits() -> tuple[tuple[torch.Tensor, torch.Tensor], data.Dataset]:
    train, test = data.load("digits").split(0.2)

    def enlarge(part: data.Dataset) -> torch.Tensor:
        images = part.x.reshape(len(part), 1, 8, 8)
        return nn.functional.interpolate(images, size=28)

    return (enlarge(train), train.y), data.as_dataset((enlarge(test), test.y))


if __name__ == "__main__":
    main()
