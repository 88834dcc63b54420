"""`Dataset`: inputs and targets in the user's own units, with names, splits and standardization."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self, overload

import numpy as np
import torch
from torch import Tensor

from bnnzoo.data import partition
from bnnzoo.data.convert import check_finite, check_task, features, targets
from bnnzoo.data.standardization import Standardization

Index = slice | Sequence[int] | np.ndarray | Tensor


class Dataset:
    """Inputs and targets, kept in their own units.

    ``x, y = dataset`` unpacks the two tensors; ``dataset[3]`` is one example and ``dataset[:100]`` a smaller data set,
    so a ``torch.utils.data.DataLoader`` takes a data set as it is. A standardization travels with the data and changes
    nothing about ``x`` and ``y``: :meth:`standardized` applies it, ``bnnzoo.fit`` does so by itself, and predictions
    come back in own units.

    Args:
        x: Inputs [N, ...]: NumPy array, tensor, DataFrame or nested list of numbers. Torch tensors keep their dtype,
            everything else becomes torch's default dtype.
        y: Targets [N], [N, 1] (becomes [N]) or [N, C]: array, tensor, Series, DataFrame or list. Text is taken as class
            names and encoded in sorted order.
        name: What the data set is called.
        task: ``"regression"``, ``"classification"`` (labels 0, 1, ...) or ``"counts"``. None infers it from ``y``:
            integers (unless negative), booleans and text are class labels, everything else is regression.
        feature_names: Names of the columns of ``x`` [N, Q]; taken from a DataFrame by default.
        target_name: Name of the target; taken from a Series by default.
        class_names: Names of the classes 0, 1, ...
        standardization: The standardization that goes with the data.
        test: The official test set, if there is one: :meth:`split` then uses it.
        description: One line about the data.

    Attributes:
        x (Tensor): The inputs, in own units.
        y (Tensor): The targets, in own units: int64 for classification, floating point otherwise.
        name (str): See the arguments.
        task (str): See the arguments.
        feature_names (tuple[str, ...] | None): See the arguments.
        target_name (str | None): See the arguments.
        class_names (tuple[str, ...] | None): See the arguments.
        standardization (Standardization | None): See the arguments.
        test (Dataset | None): See the arguments.
        description (str): See the arguments.

    Raises:
        ValueError: If there are no rows, ``x`` and ``y`` differ in length, values are missing, infinite or no numbers,
            labels do not fit, or names do not match the shape.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        *,
        name: str = "data",
        task: str | None = None,
        feature_names: Sequence[str] | None = None,
        target_name: str | None = None,
        class_names: Sequence[str] | None = None,
        standardization: Standardization | None = None,
        test: Dataset | None = None,
        description: str = "",
    ) -> None:
        inputs, columns = features(x)
        self._x = inputs
        self._scaled: Tensor | None = None
        self.y, self.task, column, classes = targets(y, None if task is None else check_task(task))
        self.name = name
        self.feature_names = tuple(feature_names) if feature_names is not None else columns
        self.target_name = target_name if target_name is not None else column
        self.class_names = tuple(class_names) if class_names is not None else classes
        self.standardization = standardization
        self.test = test
        self.description = description
        self._check()

    @classmethod
    def from_images(
        cls, images: Any, labels: Any, *, layout: Literal["NCHW", "NHWC"] | None = None, **options: Any
    ) -> Self:
        """Make a data set of 8-bit images.

        The bytes are kept, and ``x`` is computed when it is first asked for: floating point in [0, 1], [N, C, H, W].

        Args:
            images: uint8 array or tensor [N, H, W], [N, H, W, C] or [N, C, H, W].
            labels: Targets, as for the constructor.
            layout: Where the channels of 4-dimensional images are; None looks for the dimension of size 1, 3 or 4, the
                last one first.
            **options: As for the constructor.

        Raises:
            ValueError: If the images are not bytes, or their dimensions do not fit.
        """
        pixels = images.detach() if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
        if pixels.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 (0 to 255), but they are {pixels.dtype}")
        if pixels.ndim == 3:
            pixels = pixels.unsqueeze(1)
        elif pixels.ndim != 4:
            raise ValueError(f"images must be [N, H, W], [N, H, W, C] or [N, C, H, W], not {tuple(pixels.shape)}")
        else:
            if layout is None:
                layout = "NHWC" if pixels.shape[3] in (1, 3, 4) else "NCHW"
            if layout not in ("NCHW", "NHWC"):
                raise ValueError(f"layout must be 'NCHW' or 'NHWC', not {layout!r}")
            if layout == "NHWC":
                pixels = pixels.permute(0, 3, 1, 2)
        # The constructor converts and checks a stand-in of the right length; the bytes need no check.
        test = options.pop("test", None)
        dataset = cls(torch.zeros(len(pixels), 1), labels, **options)
        dataset._x, dataset.test = pixels.contiguous(), test
        dataset._check_names()
        return dataset

    @property
    def x(self) -> Tensor:
        """The inputs [N, ...], in own units."""
        if self._x.dtype != torch.uint8:
            return self._x
        if self._scaled is None:
            self._scaled = _scale(self._x)
        return self._scaled

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input: (Q,) for tables, (C, H, W) for images."""
        return tuple(self._x.shape[1:])

    @property
    def num_classes(self) -> int | None:
        """The number of classes: of class names, else the highest label plus one; None if there are no classes.

        Subsets have the number of the data set they come from, whichever labels are left.
        """
        return self._num_classes if self.class_names is None else len(self.class_names)

    def __len__(self) -> int:
        return len(self.y)

    def __iter__(self) -> Iterator[Tensor]:
        yield self.x
        yield self.y

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...
    @overload
    def __getitem__(self, index: Index) -> Dataset: ...
    def __getitem__(self, index: int | Index) -> tuple[Tensor, Tensor] | Dataset:
        """Return one example ``(x, y)`` for an integer, and a :meth:`subset` for anything else."""
        if isinstance(index, int | np.integer):
            row = self._x[int(index)]
            return (_scale(row) if row.dtype == torch.uint8 else row), self.y[int(index)]
        return self.subset(index)

    def __repr__(self) -> str:
        shape = " x ".join(str(size) for size in self.input_shape)
        parts = [f"{len(self)} rows of {shape}", self.task]
        if self.task == "classification":
            parts.append(f"{self.num_classes} classes")
        elif self.y.ndim > 1:
            parts.append(f"{self.y.shape[1]} targets")
        if self.target_name is not None:
            parts.append(f"target {self.target_name!r}")
        if self.standardization is not None:
            parts.append("with standardization")
        if self.test is not None:
            parts.append(f"official test set of {len(self.test)} rows")
        return f"Dataset({self.name!r}: {', '.join(parts)})"

    def standardized(self) -> tuple[Tensor, Tensor]:
        """Return ``(x, y)`` as the carried standardization has them; own units where there is none."""
        if self.standardization is None:
            return self.x, self.y
        return self.standardization.x(self.x), self.standardization.y(self.y)

    def with_standardization(self, standardization: Standardization | None = None) -> Dataset:
        """Return the same data carrying a standardization.

        Args:
            standardization: The one to carry. None fits it to these rows: inputs of tables (not images, not integers),
                and the targets of a regression.
        """
        if standardization is None:
            standardization = self._fit_standardization()
        return self._copy(standardization=standardization)

    def subset(self, indices: Index) -> Dataset:
        """Return some of the rows, with everything else (the standardization, too) kept; no official test set.

        Args:
            indices: Row numbers, a slice, or a mask of N booleans.

        Raises:
            ValueError: If no row is left.
            IndexError: If a row number is out of range.
        """
        if not isinstance(indices, slice):
            rows = torch.as_tensor(np.asarray(indices) if not isinstance(indices, Tensor) else indices)
            indices = rows if rows.dtype == torch.bool else rows.to(torch.int64)
        part = self._copy(_x=self._x[indices], y=self.y[indices], test=None)
        if len(part) == 0:
            raise ValueError(f"no row of data set {self.name!r} ({len(self)} rows) is selected")
        return part

    def flatten(self) -> Dataset:
        """Return the same data with each input as one row of numbers, [N, Q]: images for a dense network."""
        if self._x.ndim == 2:
            return self
        test = None if self.test is None else self.test.flatten()
        return self._copy(_x=self._x.flatten(1), feature_names=None, test=test)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Dataset:
        """Return the same data on another device, or with floating-point values in another dtype."""

        def move(values: Tensor) -> Tensor:
            return values.to(device=device, dtype=dtype if values.is_floating_point() else None)

        scaled = dtype is not None and self._x.dtype == torch.uint8
        test = None if self.test is None else self.test.to(device, dtype)
        return self._copy(_x=move(self.x if scaled else self._x), y=move(self.y), test=test)

    def split(
        self,
        test_size: float | None = None,
        seed: int = 0,
        *,
        standardize: bool = True,
        stratify: bool | None = None,
    ) -> Split:
        """Split into a training and a test set.

        Args:
            test_size: A fraction in (0, 1), or a number of rows as an ``int``. None takes the official test set if
                there is one, and 0.1 otherwise. A number splits the training rows only: the official test set stays
                out of it.
            seed: Fixes the split; global random generators are neither read nor changed.
            standardize: Fit a standardization to the training set and let both sets carry it: the inputs of tables
                (images and integers stay as they are) and the targets of a regression. False: they carry none.
            stratify: Give each class its share of both sets; None does so for class labels [N].

        Returns:
            ``Split(train, test)``, both in own units.

        Raises:
            ValueError: If a part would be empty, or stratification is asked for without class labels.
        """
        if test_size is None and self.test is not None:
            partition.generator(seed)
            return self._carry(self._copy(test=None), self.test, standardize)
        count = partition.count_of(0.1 if test_size is None else test_size, len(self))
        train, test = partition.split_indices(len(self), count, seed, self._strata(stratify))
        return self._carry(self.subset(train), self.subset(test), standardize)

    def folds(self, k: int, seed: int = 0, *, standardize: bool = True, stratify: bool | None = None) -> list[Split]:
        """Split into ``k`` folds for cross-validation.

        Args:
            k: The number of folds, from 2 to the number of rows.
            seed: Fixes the folds; global random generators are neither read nor changed.
            standardize: As in :meth:`split`, fitted to the training set of each fold.
            stratify: As in :meth:`split`.

        Returns:
            One ``Split`` for each fold, with the fold as its test set: each row is in exactly one of them.
        """
        parts = partition.fold_indices(len(self), k, seed, self._strata(stratify))
        splits = []
        for number, fold in enumerate(parts):
            rest = np.concatenate([part for other, part in enumerate(parts) if other != number])
            splits.append(self._carry(self.subset(rest), self.subset(fold), standardize))
        return splits

    def _strata(self, stratify: bool | None) -> np.ndarray | None:
        possible = self.task == "classification" and self.y.ndim == 1
        if stratify and not possible:
            raise ValueError(f"only class labels [N] can be stratified, and {self!r} has none")
        return self.y.cpu().numpy() if possible and stratify in (None, True) else None

    def _fit_standardization(self) -> Standardization | None:
        x = self._x if self._x.ndim == 2 and self._x.is_floating_point() else None
        y = self.y if self.task == "regression" else None
        return None if x is None and y is None else Standardization.fit(x, y)

    @staticmethod
    def _carry(train: Dataset, test: Dataset, standardize: bool) -> Split:
        shared = train._fit_standardization() if standardize else None
        return Split(train._copy(standardization=shared), test._copy(standardization=shared))

    def _copy(self, **changes: Any) -> Dataset:
        other = copy.copy(self)
        if "_x" in changes:
            other._scaled = None
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def _check(self) -> None:
        if len(self._x) != len(self.y):
            raise ValueError(f"x has {len(self._x)} rows and y has {len(self.y)}: they must be equal")
        if len(self.y) == 0:
            raise ValueError(f"data set {self.name!r} is empty: x has shape {tuple(self._x.shape)}")
        if 0 in self.y.shape:
            raise ValueError(f"y has shape {tuple(self.y.shape)}: there are no targets")
        self._check_names()
        check_finite(self._x, "x", self.feature_names)
        check_finite(self.y, "y")
        self._num_classes = int(self.y.max()) + 1 if self.task == "classification" else None

    def _check_names(self) -> None:
        if self.test is not None and self.test.input_shape != self.input_shape:
            raise ValueError(f"inputs have shape {self.input_shape}, those of the test set {self.test.input_shape}")
        if self.feature_names is not None and (self._x.ndim != 2 or len(self.feature_names) != self._x.shape[1]):
            raise ValueError(f"{len(self.feature_names)} feature names for inputs of shape {self.input_shape}")
        if self.class_names is None:
            return
        if self.task != "classification":
            raise ValueError(f"class names do not fit the task {self.task}")
        if len(self.y) and int(self.y.max()) >= len(self.class_names):
            raise ValueError(f"label {int(self.y.max())} is out of range for {len(self.class_names)} class names")


class Split(NamedTuple):
    """A training and a test set that share the standardization of the training set.

    Attributes:
        train: The training set.
        test: The test set.
    """

    train: Dataset
    test: Dataset


def _scale(pixels: Tensor) -> Tensor:
    return pixels.to(torch.get_default_dtype()).div_(255)
