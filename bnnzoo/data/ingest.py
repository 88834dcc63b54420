"""`as_dataset`: whatever holds inputs and targets becomes a `Dataset`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import data as torch_data

from bnnzoo.data.convert import is_frame
from bnnzoo.data.dataset import Dataset, Split

_ALLOWED = (
    "a bnnzoo Dataset, a pair (x, y) of arrays, tensors, lists or frames, a torch Dataset or DataLoader of such pairs"
)


def as_dataset(data: Any, *, task: str | None = None, standardize: bool = False, name: str | None = None) -> Dataset:
    """Return data in any of the usual forms as a :class:`Dataset`.

    A torch ``Dataset`` or ``DataLoader`` is read once, into memory. A shuffled loader is read in the order of its data
    set and with its last, smaller batch, so that the result depends on no random generator; a loader with a sampler of
    another kind is read as it comes. The global generator of torch is left as it was.

    Args:
        data: A :class:`Dataset` (returned as it is), a pair ``(x, y)``, a torch Dataset or a DataLoader of such pairs.
        task: The task, as for :class:`Dataset`; None infers it, and keeps that of a :class:`Dataset`.
        standardize: Fit a standardization to the data if they carry none; by default pairs carry none.
        name: What the data set is called.

    Raises:
        TypeError: If ``data`` is none of these.
        ValueError: If what it holds does not make a :class:`Dataset`.
    """
    if isinstance(data, Dataset):
        if task is not None and task != data.task:
            raise ValueError(f"data set {data.name!r} is for {data.task}, not for {task!r}")
        dataset = data if name is None else data._copy(name=name)
    else:
        x, y = _pair(data)
        dataset = Dataset(x, y, task=task, name=name or "data")
    if standardize and dataset.standardization is None:
        return dataset.with_standardization()
    return dataset


def _pair(data: Any) -> tuple[Any, Any]:
    if isinstance(data, Split):
        raise TypeError("this is a Split: pass its train or its test set, for example split.train")
    if isinstance(data, str):
        raise TypeError(f"{data!r} is a name: pass data.load({data!r}), or data.from_csv(path, target) for a file")
    if isinstance(data, torch_data.DataLoader):
        return _read_loader(data)
    if isinstance(data, torch_data.TensorDataset):
        if len(data.tensors) != 2:
            raise ValueError(f"the TensorDataset holds {len(data.tensors)} tensors: it must hold x and y")
        return data.tensors[0], data.tensors[1]
    if isinstance(data, torch_data.Dataset):
        return _read_batches(torch_data.DataLoader(data, batch_size=256))
    if is_frame(data):
        raise TypeError("a DataFrame alone does not say what its target is: pass data.from_frame(frame, target)")
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        raise TypeError("inputs alone are not enough: pass a pair (x, y)")
    if isinstance(data, tuple | list):
        if len(data) != 2:
            raise ValueError(f"a {type(data).__name__} of {len(data)} items: it must be a pair (x, y)")
        return data[0], data[1]
    raise TypeError(f"cannot make a data set of a {type(data).__name__}: pass {_ALLOWED}")


def _read_loader(loader: torch_data.DataLoader) -> tuple[Tensor, Tensor]:
    iterable = isinstance(loader.dataset, torch_data.IterableDataset)
    batched = loader.batch_size is not None and type(loader.batch_sampler) is torch_data.BatchSampler
    sampler = loader.sampler
    plain = type(sampler) is torch_data.SequentialSampler or (
        type(sampler) is torch_data.RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    if iterable or not batched or not plain:
        return _read_batches(loader)
    return _read_batches(
        torch_data.DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
    )


def _read_batches(batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws its workers' seed from the global generator
        iterator = iter(batches)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                break
            except TypeError as error:
                raise ValueError(f"the examples cannot be made a batch of tensors: {error}") from error
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                size = f" of {len(batch)} items" if isinstance(batch, tuple | list) else ""
                raise ValueError(f"an example must be a pair (x, y), but it is a {type(batch).__name__}{size}")
            x, y = (torch.as_tensor(part) for part in batch)
            xs.append(x)
            ys.append(y)
    if not xs:
        raise ValueError("the data set is empty: it has no rows")
    try:
        return torch.cat(xs), torch.cat(ys)
    except RuntimeError as error:
        raise ValueError(f"the examples cannot be put together: {error}") from error
