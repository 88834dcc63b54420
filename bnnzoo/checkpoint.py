"""Checkpoints of a fit: everything that the next epoch depends on, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bnnzoo.files import read, write

if TYPE_CHECKING:
    from bnnzoo.chains import Keeper, Trainer

_FORMAT = "bnnzoo.checkpoint"


class Checkpoint:
    """The state of an unfinished fit, written after every epoch.

    Args:
        path: The file.
        fingerprint: What must agree between the run that wrote it and the run that continues.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any]) -> None:
        self.path = path
        self.fingerprint = fingerprint

    def exists(self) -> bool:
        """Whether there is anything to continue."""
        return self.path.exists()

    def write(
        self,
        epoch: int,
        trainer: Trainer,
        scheduler: Any,
        keeper: Keeper,
        orders: list[torch.Generator],
        history: dict[str, list[torch.Tensor]],
    ) -> None:
        """Save the state after an epoch; the old file stays whole until the new one is."""
        device = trainer.x.device
        content = {
            "fingerprint": self.fingerprint,
            "epoch": epoch,
            "state": {name: value.clone() for name, value in trainer.state().items()},
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "keeper": {name: getattr(keeper, name) for name in ("active", "best", "since", "held", "diverged")},
            "orders": [generator.get_state() for generator in orders],
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            # One tensor an entry: thousands of small ones take longer to write than an epoch may.
            "history": {name: torch.stack(values) for name, values in history.items()},
        }
        write(self.path, _FORMAT, content)

    def restore(
        self,
        trainer: Trainer,
        scheduler: Any,
        keeper: Keeper,
        orders: list[torch.Generator],
        history: dict[str, list[torch.Tensor]],
    ) -> int:
        """Load the state into a run that has just been set up; returns the number of finished epochs.

        Raises:
            ValueError: If the file belongs to another run, or is damaged.
        """
        content = read(self.path, _FORMAT)
        theirs = content["fingerprint"]
        for name, ours in self.fingerprint.items():
            if theirs.get(name) != ours:
                raise ValueError(
                    f"checkpoint {self.path} belongs to another run: its {name} is {theirs.get(name)!r}, this one's "
                    f"{ours!r}; remove the file to start afresh"
                )
        with torch.no_grad():
            for name, value in trainer.state().items():
                value.copy_(content["state"][name])
        trainer.optimizer.load_state_dict(content["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(content["scheduler"])
        for name, value in content["keeper"].items():
            setattr(keeper, name, value)
        keeper.held = {name: value.to(trainer.x.device) for name, value in keeper.held.items()}
        for generator, state in zip(orders, content["orders"], strict=True):
            generator.set_state(state)
        torch.set_rng_state(content["random"])
        if content["cuda_random"] is not None:
            torch.cuda.set_rng_state(content["cuda_random"], trainer.x.device)
        history.update({name: list(values) for name, values in content["history"].items()})
        return content["epoch"]
