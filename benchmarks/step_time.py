"""What one optimizer step costs: bnnzoo beside hand-written code and other libraries, in one interleaved run.

    python benchmarks/step_time.py                 # all settings, about five minutes
    python benchmarks/step_time.py --only mlp-32   # one of them

Every contender sees the same network, batch and data size under a standard normal prior, with every weight random.
Ratios are medians over rounds of the ratio within a round. bnnzoo's time is that of what `fit` does for a step, the
minibatch's gathering included; "hand-written, flat" is the floor.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import floors
import peers
import torch
from common import (
    CLOCKS,
    DATA_SIZE,
    LR,
    NOISE,
    Contender,
    describe,
    environment,
    interleave,
    lenet,
    mlp,
    parsed,
    parser,
    ratio,
    start,
    table,
    write,
)
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, guides, likelihoods, objectives
from bnnzoo._vectorize import Pair, pyro_settings
from bnnzoo.chains import Trainer, stack

PLAIN = "plain PyTorch, fused Adam"
BNNZOO = "**bnnzoo**"
FLAT = "hand-written, flat (the floor)"
FLAT_DENSE = "hand-written, flat, dense convolutions (the floor)"
MNF = "**bnnzoo, MNF**, dense convolutions"
FLAT_MNF = "hand-written MNF, dense convolutions (the floor)"
MEAN_FIELD = partial(guides.MeanField, init_scale=0.01)
DENSE_CONV: dict[Any, Any] = {nn.Conv2d: "dense", "*": "local"}


@dataclass(frozen=True)
class Setting:
    """A network and a batch.

    Attributes:
        name: What `--only` calls it.
        title: What the table calls it.
        network: Makes the network.
        shape: Of one input.
        batch_size: Rows a batch.
        chains: Numbers of chains, where bnnzoo's mapped chains are timed; empty for a comparison of one chain.
    """

    name: str
    title: str
    network: Callable[[], nn.Sequential]
    shape: tuple[int, ...]
    batch_size: int
    chains: tuple[int, ...] = ()

    def contenders(self) -> list[Contender]:
        """Everything that is timed here."""
        x, y = torch.randn(DATA_SIZE, *self.shape), self.targets()
        if self.chains:
            return self.chain_contenders(x, y)
        batch = x[: self.batch_size], y[: self.batch_size]
        convolutional = any(isinstance(layer, nn.Conv2d) for layer in self.network())
        result = [
            Contender(PLAIN, floors.plain_step(self.network(), *batch)),
            Contender("hand-written, a tensor each", floors.tensor_step(self.network(), *batch)),
            Contender(FLAT, floors.flat_step(self.network(), *batch)),
            bnnzoo_contender(BNNZOO, self.network(), x, y, self.batch_size),
        ]
        if convolutional:
            dense = partial(MEAN_FIELD, sampling=DENSE_CONV)
            mnf = partial(guides.MNF, sampling=DENSE_CONV)
            result += [
                Contender(FLAT_DENSE, floors.flat_step(self.network(), *batch, local_conv=False)),
                bnnzoo_contender(f"{BNNZOO}, dense convolutions", self.network(), x, y, self.batch_size, guide=dense),
                Contender(FLAT_MNF, floors.mnf_step(self.network(), *batch)),
                bnnzoo_contender(MNF, self.network(), x, y, self.batch_size, guide=mnf),
            ]
        result.append(Contender("Pyro: PyroSample, AutoNormal, SVI", *self.peer(peers.pyro_step, batch)))
        if peers.installed("tyxe"):
            name = "TyXe 0.0.2, local reparameterization"
            result.append(Contender(name, *self.peer(peers.tyxe_step, batch)))
        if peers.installed("bayesian_torch"):
            name = "bayesian-torch 0.5.0, dense draws, fused Adam"
            result.append(Contender(name, *self.peer(peers.bayesian_torch_step, batch)))
        return result

    def chain_contenders(self, x: Tensor, y: Tensor) -> list[Contender]:
        """One hand-written chain, and several chains in one step by hand and by bnnzoo."""
        batch = x[: self.batch_size], y[: self.batch_size]
        result = [Contender(FLAT, floors.flat_step(self.network(), *batch))]
        for chains in self.chains:
            xs, ys = x[: self.batch_size].repeat(chains, 1, 1), y[: self.batch_size].repeat(chains, 1)
            if chains > 1:
                name = f"hand-written bmm, {chains} chains"
                result.append(Contender(name, floors.chains_step(self.network(), xs, ys)))
            name = f"{BNNZOO}, {chains} chain{'s' * (chains > 1)}"
            result.append(bnnzoo_contender(name, self.network(), x, y, self.batch_size, chains))
        return result

    def targets(self) -> Tensor:
        """Random targets that fit the network: numbers for one output, labels for several."""
        outputs = list(self.network().parameters())[-1].numel()
        return torch.randn(DATA_SIZE) if outputs == 1 else torch.randint(outputs, (DATA_SIZE,))

    def peer(self, make: Callable[..., floors.Step], batch: tuple[Tensor, Tensor]) -> tuple[floors.Step, Any]:
        """A competitor's step, and the context that keeps its Pyro parameters apart."""
        context = peers.own_store()
        with context():
            return make(self.network(), *batch), context


def bnnzoo_contender(
    name: str,
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    batch_size: int,
    chains: int = 1,
    guide: Callable[[BayesianNetwork], guides.Guide] = MEAN_FIELD,
    objective: objectives.Objective | None = None,
) -> Contender:
    """What `bnnzoo.fit` runs for a step: `Trainer.step`, on minibatches of the data.

    Args:
        name: Row of the table.
        network: The network.
        x: Data, [N, ...].
        y: Targets, [N].
        batch_size: Rows of each chain's minibatch.
        chains: Number of chains.
        guide: Builds the guide.
        objective: What is minimized, default the ELBO.
    """
    likelihood = likelihoods.Gaussian(scale=NOISE) if y.is_floating_point() else likelihoods.Categorical()
    bnn = BayesianNetwork(network, likelihood)
    pair = Pair(bnn, guide(bnn))
    state = stack([copy.deepcopy(pair) for _ in range(chains)])

    def optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=LR, fused=True)

    with pyro_settings(pair):
        trainer = Trainer(pair, state, objective or objectives.ELBO(), (x, y), optimizer)
    index = torch.stack([torch.randperm(len(x))[:batch_size] for _ in range(chains)])
    return Contender(name, lambda: trainer.step(index), lambda: pyro_settings(pair))


SETTINGS = (
    Setting("mlp-32", "MLP 13-50-50-1, batch 32", lambda: mlp(13, 50, 50, 1), (13,), 32),
    Setting("mlp-128", "MLP 13-50-50-1, batch 128", lambda: mlp(13, 50, 50, 1), (13,), 128),
    Setting("chains", "chains of the MLP 13-50-50-1, batch 32", lambda: mlp(13, 50, 50, 1), (13,), 32, (1, 10, 50)),
    Setting("lenet", "LeNet 28x28, batch 100", lenet, (1, 28, 28), 100),
    Setting("big-mlp", "MLP 784-1000-1000-10, batch 128", lambda: mlp(784, 1000, 1000, 10), (784,), 128),
)


def report(setting: Setting, contenders: list[Contender]) -> tuple[str, list[dict[str, Any]]]:
    """The table of one setting, and its rows for the JSON file."""
    by_name = {contender.name: contender for contender in contenders}
    plain, flat, own = by_name.get(PLAIN), by_name[FLAT], by_name.get(BNNZOO)
    rows, records = [], []
    for contender in contenders:
        # A dense convolution is compared with a dense convolution, and MNF with MNF.
        own_floor = FLAT_MNF if "MNF" in contender.name else FLAT_DENSE
        floor = by_name[own_floor] if "dense convolutions" in contender.name else flat
        ratios = {
            "plain": None if plain is None else ratio(contender, plain),
            "floor": ratio(contender, floor),
            "bnnzoo": None if own is None else ratio(contender, own),
        }
        records.append({"setting": setting.name, "contender": contender.name, "seconds": contender.median, **ratios})
        cells = ["" if value is None else f"{value:.2f}" for value in ratios.values()]
        rows.append([contender.name, f"{contender.median * 1e3:.3g}", *cells])
    header = [f"{setting.title}", "ms a step", "ratio to plain", "to its floor", "to bnnzoo"]
    return table(header, rows), records


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=100, help="rounds for small networks; the two large get a fifth")
    options.add_argument("--only", choices=[s.name for s in SETTINGS], action="append", help="settings to run")
    arguments = parsed(options, ("rounds",))
    start(arguments)
    settings = [s for s in SETTINGS if arguments.only is None or s.name in arguments.only]
    print(describe(environment(arguments)), "\n")
    if missing := [name for name in ("tyxe", "bayesian_torch") if not peers.installed(name)]:
        print(f"Not installed, left out: {', '.join(missing)} (`{peers.INSTALL}`)\n")
    records = []
    for setting in settings:
        contenders = setting.contenders()
        large = setting.name in ("lenet", "big-mlp")
        rounds = 2 if arguments.smoke else max(1, arguments.rounds // 5 if large else arguments.rounds)
        slot = 0.0 if arguments.smoke else 0.02
        warmup = 1 if arguments.smoke else 3 if large else 20
        interleave(contenders, rounds, slot, warmup, CLOCKS[arguments.clock])
        text, rows = report(setting, contenders)
        print(text, "\n", flush=True)
        records += rows
    write(arguments, records)


if __name__ == "__main__":
    main()
