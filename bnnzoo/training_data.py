"""What a fit takes from a data set: tensors as the model sees them, held-out rows, ranges and checksums."""

from __future__ import annotations

import copy
import zlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bnnzoo._vectorize import evaluating, seeded
from bnnzoo.chains import chain_seed
from bnnzoo.data import Dataset, Standardization, as_dataset
from bnnzoo.network import BayesianNetwork


def validation_split(
    dataset: Dataset, validation: Any, patience: int | None, seed: int
) -> tuple[Dataset, Dataset | None]:
    """The data to train on, and those to validate on: given, or held out of the former as a fraction.

    Raises:
        ValueError: If there is patience and nothing to validate on, or the fraction is out of range or leaves nothing.
    """
    if validation is None:
        if patience is not None:
            raise ValueError("patience needs validation data: pass validation=0.1, say")
        return dataset, None
    if not isinstance(validation, float):
        return dataset, as_dataset(validation)
    if not 0 < validation < 1:
        raise ValueError(f"validation as a fraction must be in (0, 1), not {validation}")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(chain_seed(seed, 0)))
    count = max(1, round(validation * len(dataset)))
    if count >= len(dataset):
        raise ValueError(f"validation={validation} of {len(dataset)} data leaves none to train on")
    return dataset.subset(order[count:]), dataset.subset(order[:count])


def training_tensors(
    bnn: BayesianNetwork, dataset: Dataset, standardization: Standardization | None
) -> tuple[Tensor, Tensor]:
    """Inputs and targets as the model sees them: standardized, on its device, checked against its likelihood.

    Raises:
        ValueError: If the network cannot take the inputs, or the likelihood not the outputs or targets.
    """
    reference = next(iter(bnn.network.parameters()))
    if dataset.class_names is not None and bnn.likelihood.task != "classification":
        raise ValueError(
            f"the targets are names of classes ({', '.join(dataset.class_names[:5])}), and the likelihood "
            f"{type(bnn.likelihood).__name__} is for {bnn.likelihood.task}: use Categorical()"
        )
    x, y = dataset.x, bnn.likelihood.prepare(dataset.y)
    if standardization is not None:
        x = standardization.x(x)
        if bnn.likelihood.standardizes_targets:
            y = standardization.y(y)
    x, y = x.to(reference.device), y.to(reference.device)
    if x.is_floating_point():
        x = x.to(reference.dtype)
    if y.is_floating_point():
        y = y.to(reference.dtype)
    with torch.no_grad(), evaluating(bnn):
        try:
            output = bnn.output(bnn.initial_values(), x[:2])
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(f"the network fails on inputs of shape {list(x[:2].shape)}: {error}") from error
    if len(output) != len(x[:2]):
        raise ValueError(f"the network returns {len(output)} outputs for {len(x[:2])} inputs: one a row is needed")
    bnn.likelihood.check(output, y)
    return x, y


def check_last_batch(bnn: BayesianNetwork, x: Tensor, batch_size: int) -> None:
    """Check that batch normalization can take statistics of an epoch's last batch, which may be of one row.

    Raises:
        ValueError: If it cannot.
    """
    if (len(x) % batch_size or batch_size) > 1 or not any(isinstance(m, _BatchNorm) for m in bnn.network.modules()):
        return
    try:
        with torch.no_grad(), seeded(0, x.device):
            copy.deepcopy(bnn.network).train()(x[:1])
    except ValueError as error:
        raise ValueError(
            f"{len(x)} data in batches of {batch_size} leave a batch of one row, of which batch normalization can take "
            "no statistics: choose another batch_size"
        ) from error


def input_range(x: Tensor) -> Tensor:
    """Maximum minus minimum of inputs as the model sees them: [D] of features [N, D], a scalar of anything else.

    Raises:
        ValueError: If the inputs are not real numbers, between which there would be nothing.
    """
    if not x.is_floating_point():
        raise ValueError(
            f"adversarial training moves the inputs a little, which must be real numbers for that, not {x.dtype}"
        )
    return x.amax(0) - x.amin(0) if x.dim() == 2 else x.max() - x.min()


def checksum(*tensors: Tensor) -> int:
    """A CRC of tensors' values, to tell data sets apart."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data, value)
    return value
