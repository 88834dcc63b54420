"""What Teye, Azizpour and Smith 2018 print for their regressions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PAPER = "Teye, Azizpour and Smith 2018, Bayesian uncertainty estimation for batch normalized deep networks"

SETS = ("boston", "concrete", "energy", "kin8nm", "power", "protein", "wine", "yacht")

Printed = Mapping[str, Mapping[str, tuple[float, float]]]
"""Mean and standard error by data set and method."""


def _printed(columns: str, text: str) -> Printed:
    """Rows of means and standard errors, a data set each, in the order of `SETS`."""
    rows = [list(map(float, line.split())) for line in text.strip().splitlines()]
    return {
        name: dict(zip(columns.split(), zip(row[::2], row[1::2], strict=True), strict=True))
        for name, row in zip(SETS, rows, strict=True)
    }


def _means(columns: Sequence[int], text: str) -> Mapping[str, Mapping[int, float]]:
    """Rows of means, a data set each, in the order of `SETS`; NaN where the paper has none."""
    rows = [[math.nan if cell == "-" else float(cell) for cell in line.split()] for line in text.strip().splitlines()]
    return {name: dict(zip(columns, row, strict=True)) for name, row in zip(SETS, rows, strict=True)}


METHODS = "mcbn dropout mnf"

CRPS_NORMALIZED = _printed(
    METHODS,
    """
      8.50  0.86   3.06 0.33   5.88 1.09
      3.91  0.25   0.93 0.41   3.13 0.81
      5.75  0.52   1.37 0.89   1.10 2.63
      2.85  0.18   1.82 0.14   0.52 0.26
      0.24  0.05  -0.44 0.05  -0.89 0.15
      2.66  0.10   0.99 0.08   0.57 0.03
      0.26  0.07   2.00 0.21   0.93 0.12
    -56.39 14.27  21.42 2.99  24.92 3.77
    """,
)
"""Table 4, in percent. Table 1 has the same means, but for MNF's of kin8nm, which is 0.53 there."""

PLL_NORMALIZED = _printed(
    METHODS,
    """
     10.49  1.35    5.51  1.05    1.76  1.12
    -36.36 12.12   10.92  1.78   -2.16  4.19
     10.89  1.16  -14.28  5.15  -33.88 29.57
      1.68  0.37   -0.26  0.18    0.42  0.43
      0.33  0.14    3.52  0.23   -0.86  0.15
      2.56  0.23    6.23  0.19    0.52  0.07
      0.19  0.09    2.91  0.35    0.83  0.16
     45.58  5.18  -41.54 31.37   46.19  4.45
    """,
)
"""Table 5, in percent. Table 1 has the same means, but for MNF's of power, which is -0.87 there."""

CRPS = _printed(
    METHODS,
    """
    1.45 0.02  1.41 0.02  1.57 0.02
    2.40 0.04  2.42 0.04  3.61 0.02
    0.33 0.01  0.26 0.00  1.33 0.04
    0.04 0.00  0.04 0.00  0.05 0.00
    2.00 0.01  2.00 0.01  2.31 0.01
    1.95 0.01  1.95 0.00  2.25 0.01
    0.34 0.00  0.33 0.00  0.34 0.00
    0.68 0.02  0.32 0.01  0.94 0.01
    """,
)
"""Table 6, in the target's units."""

PLL = _printed(
    METHODS,
    """
    -2.38 0.02  -2.35 0.02  -2.51 0.06
    -3.45 0.11  -2.94 0.02  -3.35 0.04
    -0.94 0.04  -0.80 0.04  -3.18 0.07
     1.21 0.01   1.24 0.00   1.04 0.00
    -2.75 0.00  -2.72 0.01  -2.86 0.01
    -2.73 0.00  -2.70 0.00  -2.83 0.01
    -0.95 0.01  -0.89 0.01  -0.93 0.00
    -1.39 0.03  -2.57 0.69  -1.96 0.05
    """,
)
"""Table 6, in nats."""

RMSE = _printed(
    "mcbn bn dropout do mnf",
    """
    2.75 0.05  2.77 0.05  2.65 0.05  2.69 0.05  2.98 0.06
    4.78 0.09  4.89 0.08  4.80 0.10  4.99 0.10  6.57 0.04
    0.59 0.02  0.57 0.01  0.47 0.01  0.49 0.01  2.38 0.07
    0.07 0.00  0.07 0.00  0.07 0.00  0.07 0.00  0.09 0.00
    3.74 0.01  3.74 0.01  3.74 0.02  3.72 0.02  4.19 0.01
    3.66 0.01  3.69 0.01  3.66 0.01  3.68 0.01  4.10 0.01
    0.62 0.00  0.62 0.00  0.60 0.00  0.61 0.00  0.61 0.00
    1.23 0.05  1.28 0.06  0.75 0.03  0.72 0.04  2.13 0.05
    """,
)
"""Table 7, in the target's units; `bn` and `do` are the networks without draws."""

BATCH_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)

CRPS_BY_BATCH = _means(
    BATCH_SIZES,
    """
     -7.1  16.6  11.8   7.2  2.5  0.9  -    -
    -34.5   6.0   5.0   5.1  2.9  1.4  0.6  0.0
    -61.6  -3.0   2.7   9.8 11.1  0.8  4.9  -
     -1.4  -4.3   0.2   2.8  2.7  1.7  0.9  0.5
    -10.5   0.8   0.0  -0.1  0.0  0.0  0.2  0.0
     14.5   4.8   3.6   2.8  2.5  1.6  1.0  0.5
      2.2   1.6   0.6   0.6  0.3  0.0  0.2  0.0
     15.1 -23.0 -30.4  21.0 34.4  -    -    -
    """,
)
"""Table 8: the normalized CRPS of MCBN by batch size, in percent."""

PLL_BY_BATCH = _means(
    BATCH_SIZES,
    """
      13.9  -36.7  10.0   7.9   3.7  1.5  -    -
    -113.3 -528.4 -10.0   2.9   0.0  1.4  0.2  0.0
     -64.4    5.2  -0.2  -9.6 -14.5  1.4 10.4  -
      -4.9   -5.4  -3.1   1.6   2.3  1.5  0.7  0.4
    -135.0   -1.4  -1.0  -1.1  -0.4  0.1 -0.1  0.4
      44.9   15.7   4.6   2.9   2.8  2.2  1.2  0.6
       2.2    2.0   0.0   0.5   0.6  0.4  0.0  0.0
      99.6   74.9  76.8  48.5  44.9  -    -    -
    """,
)
"""Table 9: the normalized PLL."""

PASSES = (250, 100, 50)

CRPS_BY_PASSES = _means(
    PASSES,
    """
     6.1  2.7  3.2
     3.3  2.3  3.3
    13.2  4.2  7.9
     3.2  2.7  4.2
     0.2  0.5  0.1
     2.3  2.7  2.4
     0.9 -0.4  0.6
    32.9 32.2 32.1
    """,
)
"""Table 10: the normalized CRPS of MCBN by the number of forward passes, in percent."""

PLL_BY_PASSES = _means(
    PASSES,
    """
     7.8   1.9   2.6
     3.8   7.1   0.1
    15.7 -30.5 -47.3
     2.5   2.2   3.4
    -0.9   0.7  -0.9
     1.8   2.0   2.4
     1.7  -0.9   1.1
    38.0  35.9  35.5
    """,
)
"""Table 11: the normalized PLL."""
