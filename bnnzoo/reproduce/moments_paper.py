"""The tables of Shekhovtsov & Flach 2018 (Feed-forward uncertainty propagation) as they are printed."""

from __future__ import annotations

import math
from dataclasses import dataclass

PAPER = "Shekhovtsov & Flach 2018"

TABLE_1: dict[tuple[float, float], tuple[float, float, float]] = {
    (0.0, 0.0): (0, 0.00015, 0.00015),
    (0.0, 1.0): (0, 0.05, 0.05),
    (1.0, 1.0): (1, 0.95, 0.95),
    (0.25, 0.25): (0.0625, 0.077, 0.0027),
    (0.5, 0.5): (0.25, 0.26, 0.05),
    (0.75, 0.75): (0.56, 0.55, 0.5),
}
"""By the probabilities of the inputs: that of their AND, E[Y], and AP1."""

# Table 2 prints six numbers under seven columns. They are those without the first convolution: under noise on the
# input its mean is exact in the ordinary pass, and under dropout or Bernoulli units it is not random.
LENET = ("A1", "C2", "A2", "C3", "A3", "F")
CIFAR = ("C1", "A1", "C2", "A2", "C3", "A3", "C4", "A4", "C5", "A5", "C6", "A6", "C7", "A7", "C8", "A8", "C9", "P")


@dataclass(frozen=True)
class Rows:
    """A setting's numbers, of Table 2 or 3.

    Attributes:
        columns: Layers.
        ap1: ε_μ of AP1, by layer.
        ap2: ε_μ of AP2.
        sigma: ε_σ of AP2.
        kl_ap1: KL of AP1.
        kl: KL of AP2, simplified softmax.
        kl_logistic: KL' of AP2, the full approximation of the softmax.
    """

    columns: tuple[str, ...]
    ap1: tuple[float, ...]
    ap2: tuple[float, ...]
    sigma: tuple[float, ...]
    kl_ap1: float
    kl: float
    kl_logistic: float

    def __post_init__(self) -> None:
        assert len(self.columns) == len(self.ap1) == len(self.ap2) == len(self.sigma)

    def column(self, name: str) -> dict[str, float]:
        """The three measures of a layer; NaN where the paper has none."""
        if name not in self.columns:
            return dict.fromkeys(("ap1", "ap2", "sigma"), math.nan)
        index = self.columns.index(name)
        return {"ap1": self.ap1[index], "ap2": self.ap2[index], "sigma": self.sigma[index]}


TABLE_2 = (
    Rows(
        LENET,
        (.02, .04, .04, .06, .05, .08),
        (.02, .02, .02, .03, .02, .03),
        (1.01, .88, .87, .64, .63, .63),
        1.4e-6, 4.5e-7, 3.8e-7,
    ),
    Rows(
        LENET,
        (.14, .29, .24, .60, .45, .67),
        (.02, .03, .03, .05, .05, .08),
        (1.07, .91, .91, .68, .58, .69),
        .03, .003, .002,
    ),
    Rows(
        LENET,
        (.31, .74, .51, 1.47, 1.11, 1.60),
        (.03, .04, .05, .06, .07, .10),
        (1.12, .99, 1.09, .75, .65, .79),
        5.09, .07, .03,
    ),
    Rows(
        LENET,
        (.01, .02, .04, .17, .06, .10),
        (.01, .02, .01, .03, .02, .03),
        (1.0, 1.0, 1.01, .95, .98, .95),
        .02, 9.5e-3, 2.9e-3,
    ),
    Rows(
        LENET,
        (.02, .02, .13, .20, .20, .17),
        (.02, .02, .03, .04, .08, .07),
        (1.09, 1.0, 1.0, .69, .95, .93),
        6.0, .06, 1.2e-2,
    ),
    Rows(
        LENET,
        (.06, .17, .17, .40, .38, .53),
        (.03, .05, .05, .12, .12, .17),
        (1.0, 1.10, 1.09, .72, .72, .90),
        .01, 2.6e-3, 1.4e-2,
    ),
)  # fmt: skip

NO = math.nan
TABLE_3 = (
    Rows(
        CIFAR,
        (.02, .24, .39, .37, .76, .63, 1.13, .85, 1.59, 1.10, 1.93, 1.32, 2.65, 1.86, 2.76, 1.93, 1.99, 2.59),
        (.02, .02, .03, .19, .49, .36, .55, .42, .73, .55, .96, .68, 1.26, .97, 1.27, 1.01, 1.14, 1.43),
        (1.0, 1.11, .59, .40, .37, .28, .35, .19, .26, .10, .17, .05, .11, .05, .08, .04, .07, .07),
        4.42, 1.71, 1.71,
    ),
    Rows(
        CIFAR,
        (NO, .01, .02, .04, .12, .07, .13, .09, .17, .11, .21, .14, .26, .14, .27, .16, .23, .32),
        (NO, .01, .02, .01, .02, .02, .03, .02, .04, .03, .05, .04, .08, .05, .08, .07, .10, .15),
        (NO, 1.0, 1.0, 1.02, .93, .95, .90, .92, .81, .79, .73, .69, .71, .69, .71, .65, .56, .69),
        .05, .02, .02,
    ),
    Rows(
        CIFAR,
        (NO, .02, .02, .04, .12, .10, .18, .15, .29, .21, .37, .25, .48, .31, .44, .33, .27, .47),
        (NO, .02, .02, .03, .04, .04, .05, .06, .12, .10, .20, .14, .30, .19, .28, .19, .14, .25),
        (NO, 1.12, 1.0, 1.02, .92, .99, .78, .97, .59, .95, .56, .94, .61, .94, .73, .96, .74, .99),
        3.46, .21, .1,
    ),
    Rows(
        CIFAR,
        (.02, .17, .17, .28, .49, .53, .98, .96, 1.47, 1.39, 1.62, 1.52, 2.13, 2.06, 2.36, 2.31, 1.86, 2.55),
        (.02, .03, .03, .16, .40, .43, .82, .81, 1.26, 1.21, 1.39, 1.32, 1.88, 1.84, 2.05, 2.03, 1.60, 2.20),
        (1.0, 1.01, .40, .41, .28, .29, .23, .23, .12, .11, .05, .05, .02, .02, .01, .01, .01, .01),
        3.46, 2.68, 2.68,
    ),
)  # fmt: skip

TABLE_4: dict[str, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "leaky ReLU": {
        "None": ((.10, .27, .23, .22, .39, .33, .41), (.89, 1.32, .85, 1.01, .92, 1.03, .93)),
        "BN": ((.10, .49, .13, .36, .29, .52, .49), (.89, 1.20, 1.04, 1.22, 1.28, 1.47, 1.49)),
        "AP2": ((.10, .20, .26, .25, .38, .37, .38), (.89, 1.23, .92, 1.17, 1.08, 1.37, 1.21)),
    },
    "logistic transform": {
        "None": ((.10, .09, .24, .24, .36, .36, .27), (.89, .91, .76, .76, .76, .77, .75)),
        "BN": ((.10, .04, .20, .19, .34, .34, .25), (.93, 1.06, 1.02, 1.10, 1.15, 1.16, 1.16)),
        "AP2": ((.10, .04, .17, .15, .37, .37, .28), (.89, 1.15, 1.02, 1.13, 1.16, 1.22, 1.21)),
    },
}  # fmt: skip
"""By activation and initialization: errors of means and of standard deviations by layer, C1 A1 C2 A2 C3 A3 F."""
