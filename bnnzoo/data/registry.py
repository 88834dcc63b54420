"""The data sets that are known by name: what each one is, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bnnzoo.data import embedded, scenes, toys
from bnnzoo.data.convert import Task
from bnnzoo.data.dataset import Dataset
from bnnzoo.data.messages import closest


@dataclass(frozen=True)
class OpenML:
    """Where a data set is on openml.org.

    Attributes:
        data_id: Its number, or None where name and version say it.
        name: Its name there.
        version: Its version there.
        drop: Columns that are no features, such as a second target.
    """

    data_id: int | None = None
    name: str | None = None
    version: int = 1
    drop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What is known about a data set without reading it.

    Attributes:
        name: Its name in :func:`bnnzoo.data.load`.
        task: regression, classification or counts.
        description: One line.
        source: Where it comes from.
        kind: ``"table"`` and ``"images"`` are files, ``"embedded"`` comes with scikit-learn, ``"generated"`` is drawn.
        rows: The number of rows (of the training set, if there is an official test set).
        input_shape: The shape of one input.
        test_rows: The number of rows of the official test set, or 0.
        test_counts: How many rows of each class the official test set has: tells a reordered copy.
        feature_names: Names of the inputs of a table.
        target_name: Name of the target.
        class_names: Names of the classes.
        openml: Where it can be downloaded, or None: the file must then be provided.
        build: Makes it, where there is no file.
    """

    name: str
    task: Task
    description: str
    source: str
    kind: Literal["table", "images", "embedded", "generated"]
    rows: int
    input_shape: tuple[int, ...]
    test_rows: int = 0
    test_counts: tuple[int, ...] = ()
    feature_names: tuple[str, ...] | None = None
    target_name: str | None = None
    class_names: tuple[str, ...] | None = None
    openml: OpenML | None = None
    build: Callable[[], Dataset] | None = None

    @property
    def num_features(self) -> int:
        """The number of numbers in one input."""
        return math.prod(self.input_shape)


def _table(name: str, rows: int, features: str, target: str, description: str, openml: OpenML | None) -> Entry:
    columns = tuple(features.split())
    return Entry(
        name,
        "regression",
        description,
        "UCI repository" if name not in ("boston", "kin8nm") else "StatLib" if name == "boston" else "Delve",
        "table",
        rows,
        (len(columns),),
        feature_names=columns,
        target_name=target,
        openml=openml,
    )


_DIGITS = tuple("0123456789")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        _table(
            "boston",
            506,
            "CRIM ZN INDUS CHAS NOX RM AGE DIS RAD TAX PTRATIO B LSTAT",
            "MEDV",
            "median house value (1000 $) in Boston; B encodes race: for comparison with papers only",
            OpenML(531, "boston"),
        ),
        _table(
            "concrete",
            1030,
            "cement blast_furnace_slag fly_ash water superplasticizer coarse_aggregate fine_aggregate age",
            "strength",
            "compressive strength of concrete (MPa) from its mixture and age",
            OpenML(44959, "concrete_compressive_strength"),
        ),
        _table(
            "energy",
            768,
            "relative_compactness surface_area wall_area roof_area overall_height orientation glazing_area "
            "glazing_area_distribution",
            "heating_load",
            "heating load of simulated buildings (kWh/m²)",
            OpenML(44960, "energy_efficiency", drop=("cooling_load",)),
        ),
        _table(
            "kin8nm",
            8192,
            " ".join(f"theta{joint}" for joint in range(1, 9)),
            "distance",
            "distance of a simulated 8-link robot arm's end from a target",
            OpenML(44980, "kin8nm"),
        ),
        _table(
            "power",
            9568,
            "temperature exhaust_vacuum ambient_pressure relative_humidity",
            "output",
            "hourly electrical output (MW) of a combined cycle power plant",
            None,
        ),
        _table(
            "protein",
            45730,
            "F1 F2 F3 F4 F5 F6 F7 F8 F9",
            "RMSD",
            "deviation (Å) of predicted protein structures from physicochemical properties",
            OpenML(44963, "physiochemical_protein"),
        ),
        _table(
            "wine",
            1599,
            "fixed_acidity volatile_acidity citric_acid residual_sugar chlorides free_sulfur_dioxide "
            "total_sulfur_dioxide density pH sulphates alcohol",
            "quality",
            "quality (0 to 10) of red wine from chemical tests",
            OpenML(44972, "red_wine"),
        ),
        _table(
            "yacht",
            308,
            "longitudinal_position prismatic_coefficient length_displacement_ratio beam_draught_ratio "
            "length_beam_ratio froude_number",
            "resistance",
            "residuary resistance of sailing yachts from hull shape and speed",
            OpenML(None, "yacht_hydrodynamics"),
        ),
        Entry(
            "diabetes",
            "regression",
            "disease progression one year after baseline (score 25 to 346)",
            "scikit-learn, embedded",
            "embedded",
            442,
            (10,),
            feature_names=embedded.DIABETES_FEATURES,
            target_name="progression",
            build=embedded.diabetes,
        ),
        Entry(
            "digits",
            "classification",
            "handwritten digits, 8 x 8 pixels",
            "scikit-learn, embedded",
            "embedded",
            1797,
            (1, 8, 8),
            target_name="digit",
            class_names=_DIGITS,
            build=embedded.digits,
        ),
        Entry(
            "mnist",
            "classification",
            "handwritten digits, 28 x 28 pixels",
            "LeCun, Cortes, Burges",
            "images",
            60000,
            (1, 28, 28),
            test_rows=10000,
            test_counts=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
            target_name="digit",
            class_names=_DIGITS,
            openml=OpenML(554, "mnist_784"),
        ),
        Entry(
            "fashion-mnist",
            "classification",
            "photographs of clothes, 28 x 28 pixels",
            "Zalando Research",
            "images",
            60000,
            (1, 28, 28),
            test_rows=10000,
            test_counts=(1000,) * 10,
            target_name="article",
            class_names=_FASHION,
            openml=OpenML(40996, "Fashion-MNIST"),
        ),
        Entry(
            "notmnist",
            "classification",
            "letters A to J in many fonts, 28 x 28 pixels: out of distribution for mnist",
            "Bulatov",
            "images",
            10000,
            (1, 28, 28),
            target_name="letter",
            class_names=tuple("ABCDEFGHIJ"),
        ),
        Entry(
            "cifar10",
            "classification",
            "photographs of 10 kinds of things, 32 x 32 pixels in color",
            "Krizhevsky",
            "images",
            50000,
            (3, 32, 32),
            test_rows=10000,
            test_counts=(1000,) * 10,
            target_name="object",
            class_names=_CIFAR,
            openml=OpenML(40927, "CIFAR_10"),
        ),
        Entry(
            "cubic",
            "regression",
            "y = x³ + N(0, 9), 20 points on [-4, 4], the toy of the MNF paper",
            "generated",
            "generated",
            20,
            (1,),
            feature_names=("x",),
            target_name="y",
            build=toys.cubic,
        ),
        Entry(
            "gap",
            "regression",
            "sine with noise that grows with x, and no data in the middle",
            "generated",
            "generated",
            200,
            (1,),
            feature_names=("x",),
            target_name="y",
            build=toys.gap,
        ),
        Entry(
            "moons",
            "classification",
            "two interleaved half circles",
            "generated",
            "generated",
            200,
            (2,),
            feature_names=("x1", "x2"),
            target_name="moon",
            class_names=("upper", "lower"),
            build=toys.moons,
        ),
        Entry(
            "counts",
            "counts",
            "Poisson counts with rate exp(1 + sin 2x)",
            "generated",
            "generated",
            200,
            (1,),
            feature_names=("x",),
            target_name="y",
            build=toys.counts,
        ),
        Entry(
            "shapes",
            "classification",
            "disks, rectangles and triangles over each other, with a label for every pixel",
            "generated",
            "generated",
            500,
            (3, 32, 32),
            target_name="shape",
            class_names=scenes.CLASSES,
            build=toys.shapes,
        ),
    )
}


def names() -> list[str]:
    """Return the names that :func:`bnnzoo.data.load` knows."""
    return list(ENTRIES)


def info(name: str) -> Entry:
    """Return what is known about a data set; nothing is read.

    Args:
        name: One of :func:`names`; upper case and underscores are forgiven.

    Raises:
        ValueError: If there is no such data set; the closest name is suggested.
    """
    key = str(name).strip().lower().replace("_", "-").replace(" ", "-")
    if key not in ENTRIES:
        raise ValueError(
            f"unknown data set {name!r}.{closest(key, ENTRIES)} Known: {', '.join(ENTRIES)}. "
            "Your own data: data.from_csv(path, target), data.from_frame(frame, target) or a pair (x, y)"
        )
    return ENTRIES[key]
