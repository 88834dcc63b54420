"""What 200 posterior draws of a prediction cost, and how much memory `predict` takes.

    python benchmarks/predict_time.py

Timed: 200 draws of an MLP 8-50-50-1 on 256 rows, in one interleaved run. The floor draws the weights by hand and
multiplies in batches. Memory: the peak of a process of its own for each number of draws, above what it held before.
"""

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import floors
import peers
import pyro
import torch
from common import (
    CLOCKS,
    NOISE,
    Contender,
    describe,
    environment,
    interleave,
    mlp,
    parsed,
    parser,
    ratio,
    start,
    table,
    write,
)
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from bnnzoo import BayesianNetwork, Posterior, fit, guides, likelihoods
from bnnzoo._vectorize import pyro_settings

DRAWS, ROWS, FEATURES = 200, 256, 8
MEMORY_ROWS = 256
FLOOR = "hand-written, torch.baddbmm (the floor)"
BNNZOO = "**bnnzoo** `posterior.predict`"


def posterior(features: int = FEATURES, hidden: int = 50) -> Posterior:
    """A posterior of an MLP with two hidden layers that has seen 32 random rows once."""
    bnn = BayesianNetwork(mlp(features, hidden, hidden, 1), likelihoods.Gaussian(scale=NOISE))
    data = torch.randn(32, features), torch.randn(32)
    return fit(bnn, guides.MeanField(bnn), data, epochs=1, batch_size=32, progress=False)


def contenders(x: Tensor) -> list[Contender]:
    """Everything that is timed."""
    fitted = posterior()
    by_hand = floors.bmm_draws(mlp(FEATURES, 50, 50, 1), 0.1, DRAWS)
    return [
        Contender(FLOOR, lambda: by_hand(x)),
        Contender(BNNZOO, lambda: fitted.predict(x, DRAWS)),
        Contender("**bnnzoo** `predict`, then `mean` and `variance`", lambda: moments(fitted, x)),
        _predictive("`pyro.infer.Predictive`, bnnzoo's model and guide", fitted, x),
        _stock_pyro("`pyro.infer.Predictive`, PyroSample and AutoNormal", x),
    ]


def moments(fitted: Posterior, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the predictions."""
    prediction = fitted.predict(x, DRAWS)
    return prediction.mean, prediction.variance


def _predictive(name: str, fitted: Posterior, x: Tensor) -> Contender:
    predictive = Predictive(fitted.bnn, guide=fitted.guide, num_samples=DRAWS, return_sites=("_RETURN",))
    return Contender(name, lambda: predictive(x), lambda: pyro_settings(fitted.bnn, fitted.guide))


def _stock_pyro(name: str, x: Tensor) -> Contender:
    context = peers.own_store()
    with context():
        model = peers.PyroNetwork(mlp(FEATURES, 50, 50, 1))
        guide = AutoNormal(model)
        optimizer = pyro.optim.Adam({"lr": 1e-3})  # type: ignore[attr-defined]
        SVI(model, guide, optimizer, Trace_ELBO()).step(x[:32], torch.randn(32))
        predictive = Predictive(model, guide=guide, num_samples=DRAWS, return_sites=("_RETURN",))
    return Contender(name, lambda: predictive(x), context)


def peak_memory(hidden: int, draws: int, max_memory: int, summary: bool) -> dict[str, Any]:
    """MiB that a prediction takes at its peak, and that its result takes, measured in a process of its own.

    A prediction whose draws alone do not fit into `max_memory` is refused: then there is the message only.
    """
    arguments = [str(v) for v in (hidden, draws, max_memory, int(summary))]
    command = [sys.executable, __file__, "--measure", *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(hidden: int, draws: int, max_memory: int, summary: bool) -> dict[str, Any]:
    """What `peak_memory` runs in its own process."""
    torch.set_num_threads(1)
    fitted = posterior(FEATURES, hidden)
    predict = fitted.summarize if summary else fitted.predict
    x = torch.randn(MEMORY_ROWS, FEATURES)
    predict(x[:2], num_samples=2)  # what Python and torch load at first use is no part of the prediction
    gc.collect()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    try:
        result = predict(x, num_samples=draws, max_memory=max_memory)
    except ValueError as error:
        return {"refused": str(error)}
    peak = _resident("VmHWM") - before
    own = [v for v in vars(result).values() if isinstance(v, Tensor)]
    own += list(getattr(result, "parameters", {}).values())
    return {"peak": peak, "result": sum(v.untyped_storage().nbytes() for v in own) / 2**20}


def _resident(field: str) -> float:
    """A field of the process's memory, in MiB; Linux only."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _sizes(record: dict[str, Any]) -> list[str]:
    if "refused" in record:
        return ["refused: the draws do not fit", ""]
    return [f"{record['peak']:.0f}", f"{record['result']:.1f}"]


def memory_rows(smoke: bool) -> list[dict[str, Any]]:
    """Peak memory of `predict` and `summarize` for growing numbers of draws and two networks."""
    rows = []
    cases = [(50, 200, 64), (50, 2000, 64), (50, 20000, 128), (50, 100000, 512), (500, 200, 64), (500, 2000, 64)]
    for hidden, draws, limit in cases[:1] if smoke else cases:
        for summary in (False, True):
            record = {"hidden": hidden, "draws": draws, "max_memory": limit, "summary": summary}
            rows.append(record | peak_memory(hidden, draws, limit * 2**20, summary))
    return rows


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=30)
    options.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    options.add_argument("--measure", nargs=4, type=int, help=argparse.SUPPRESS)
    arguments = parsed(options, ("rounds",))
    if arguments.measure:
        hidden, draws, max_memory, summary = arguments.measure
        print(json.dumps(measure(hidden, draws, max_memory, bool(summary))))
        return
    start(arguments)
    print(describe(environment(arguments)), "\n")
    timed = contenders(torch.randn(ROWS, FEATURES))
    rounds = 2 if arguments.smoke else arguments.rounds
    interleave(timed, rounds, 0.0 if arguments.smoke else 0.02, 1, CLOCKS[arguments.clock])
    own = next(contender for contender in timed if contender.name == BNNZOO)
    header = [f"{DRAWS} draws, MLP 8-50-50-1, {ROWS} rows", "ms", "ratio to the floor", "ratio to bnnzoo"]
    rows = [[c.name, f"{c.median * 1e3:.3g}", f"{ratio(c, timed[0]):.2f}", f"{ratio(c, own):.2f}"] for c in timed]
    print(table(header, rows), "\n")
    results: dict[str, Any] = {"time": [{"contender": c.name, "seconds": c.median} for c in timed]}
    if not arguments.no_memory and Path("/proc/self/clear_refs").exists():
        results["memory"] = memory_rows(arguments.smoke)
        header = [f"MLP 8-h-h-1, {MEMORY_ROWS} rows", "h", "draws", "max_memory, MiB", "peak, MiB", "result, MiB"]
        names = ("`predict`", "`summarize`")
        cells = [[names[r["summary"]], r["hidden"], r["draws"], r["max_memory"], *_sizes(r)] for r in results["memory"]]
        print(table(header, cells))
    write(arguments, results)


if __name__ == "__main__":
    main()
