"""What reproductions share: fits and numbers that are kept, digits that need no file."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bnnzoo import data, files
from bnnzoo._vectorize import Pair
from bnnzoo.chains import stack
from bnnzoo.guides import Guide
from bnnzoo.loop import Progression
from bnnzoo.network import BayesianNetwork
from bnnzoo.posterior import Posterior
from bnnzoo.serialization import load
from bnnzoo.training import fit


class OtherSettingError(ValueError):
    """What is kept was made with another setting."""


def kept(
    path: Path,
    make: Callable[[], Posterior],
    network: nn.Module | None = None,
    say: Callable[[str], object] = print,
) -> Posterior:
    """The posterior in a file; if there is none, what `make` returns, written there.

    Args:
        path: The file, `NAME.bnn`, in a folder that exists.
        make: Fits or samples it; `info["seconds"]` tells the processor time that took.
        network: Of a class that a file cannot hold, see `bnnzoo.load`.
        say: Is told when a posterior was made, such as `context.say`.
    """
    if path.exists():
        return load(path, network)
    begin = time.process_time()
    posterior = make()
    posterior.info["seconds"] = time.process_time() - begin
    posterior.save(path)
    say(f"{path.stem}: {posterior.info['seconds']:.0f} CPU s")
    return posterior


def trained(
    path: Path,
    bnn: BayesianNetwork,
    guide: Guide,
    train: data.Dataset,
    *,
    say: Callable[[str], object] = print,
    callback: Callable[[Progression], bool | None] | None = None,
    **settings: Any,
) -> Posterior:
    """The posterior in a file; if there is none, a fit, written there, that goes on where it was interrupted.

    Args:
        path: The file, `NAME.bnn`, in a folder that exists. Until it is written, `NAME.checkpoint` and `NAME.seconds`
            lie beside it.
        bnn: The model, the same one at every call.
        guide: Built from it.
        train: The data to fit to.
        say: Is told the loss after every epoch, such as `context.say`.
        callback: Of `bnnzoo.fit`; the time that it takes is not counted.
        settings: Of `bnnzoo.fit`, `epochs` among them.

    Returns:
        The posterior; `info["seconds"]` is the processor time of its fit, interrupted calls included.
    """
    if path.exists():
        return load(path)
    checkpoint, spent = path.with_suffix(".checkpoint"), path.with_suffix(".seconds")
    seconds = float(spent.read_text()) if checkpoint.exists() and spent.exists() else 0.0
    begin = time.process_time()

    def after_epoch(state: Progression) -> bool | None:
        nonlocal seconds, begin
        seconds += time.process_time() - begin
        files.write_text(spent, f"{seconds}\n")
        loss = state.history["loss"][:, -1].mean()
        say(f"{path.stem}: epoch {state.epoch} of {settings['epochs']}, loss {loss:.4g}, {seconds:.0f} CPU s")
        stop = None if callback is None else callback(state)
        begin = time.process_time()
        return stop

    posterior = fit(bnn, guide, train, checkpoint=checkpoint, callback=after_epoch, progress=False, **settings)
    posterior.info["seconds"] = seconds
    posterior.save(path)
    for rest in (checkpoint, spent):
        rest.unlink(missing_ok=True)
    return posterior


def recorded(
    path: Path,
    setting: Mapping[str, Any],
    make: Callable[[], Mapping[str, Any]],
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """The numbers in a JSON file; if there is none, what `make` returns, written there.

    Args:
        path: The file, `NAME.json`, in a folder that exists.
        setting: What the numbers depend on, of types that JSON has; written beside them, under `setting`.
        make: Computes them.
        say: Is told when numbers were made, such as `context.say`.

    Returns:
        The numbers, the `setting`, and under `seconds`, if `make` did not say so itself, the processor time it took.

    Raises:
        OtherSettingError: If the file was made with another setting.
    """
    setting = json.loads(json.dumps(setting))
    if path.exists():
        result = json.loads(path.read_text())
        changed = [name for name, value in setting.items() if result["setting"].get(name) != value]
        if changed or len(setting) != len(result["setting"]):
            names = ", ".join(changed) or ", ".join(set(result["setting"]) - set(setting))
            raise OtherSettingError(f"{path} was made with another {names}: keep this run elsewhere")
        return result
    begin = time.process_time()
    result = dict(make())
    text = json.dumps({"seconds": time.process_time() - begin, **result, "setting": setting}, indent=2)
    files.write_text(path, text + "\n")
    result = json.loads(text)  # as the next call will have it
    say(f"{path.stem}: {result['seconds']:.0f} CPU s")
    return result


def enlarged_digits() -> tuple[data.Dataset, data.Dataset]:
    """Training and test part of embedded digits, 8x8 pixels enlarged to [N, 1, 28, 28]: runs that need no files."""
    train, test = data.load("digits")[:300].split(0.2)

    def enlarge(part: data.Dataset) -> data.Dataset:
        images = part.x.reshape(len(part), 1, 8, 8)
        return data.as_dataset((nn.functional.interpolate(images, size=28), part.y))

    return enlarge(train), enlarge(test)


def trained_network(posterior: Posterior) -> nn.Module:
    """A copy of a posterior's network with the weights of its single chain, for posteriors that are points."""
    network = copy.deepcopy(posterior.bnn.network).eval()
    values = {name: value[0, 0] for name, value in posterior.sample(1).items()}
    network.load_state_dict(values, strict=False)  # buffers stay: the network has them already
    return network


def snapshot(bnn: BayesianNetwork, guide: Guide, parameters: Mapping[str, Tensor]) -> Posterior:
    """A posterior of the chains' parameters as they are in the midst of a fit.

    Args:
        bnn: The model.
        guide: Of the fit.
        parameters: Of the chains, [chain, ...], as a `Progression` has them; copied.
    """
    pair = Pair(bnn, guide).copy()
    values = {name: value.detach().clone() for name, value in parameters.items()}
    chains = len(next(iter(values.values())))
    return Posterior(pair.eval(), values, stack([pair] * chains)[1])
