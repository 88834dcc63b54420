"""What an export leaves out to stay within a number of bytes."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

FEW = 100
"""Draws a chain below which something else is left out first."""


@dataclass(frozen=True)
class Cost:
    """What the parts of an export take, in bytes.

    Attributes:
        chains: Number of chains.
        sites: One draw of one chain, for each site.
        per_draw: What else comes with a draw of one chain: targets, densities.
        per_prior_draw: What else comes with a draw from the prior.
        inputs: The inputs, once.
    """

    chains: int
    sites: dict[str, int]
    per_draw: int
    per_prior_draw: int
    inputs: int

    def total(self, draws: int, prior_draws: int, sites: list[str], inputs: bool) -> int:
        """Bytes of an export of these draws and sites, with or without the inputs."""
        weights = sum(self.sites[name] for name in sites)
        drawn = draws * (weights + self.per_draw) + min(prior_draws, draws) * (weights + self.per_prior_draw)
        return self.chains * drawn + (self.inputs if inputs else 0)


@dataclass(frozen=True)
class Plan:
    """What to export.

    Attributes:
        draws: Draws a chain.
        prior_draws: Draws from the prior a chain; 0 for no prior groups.
        sites: Sites to keep.
        inputs: Whether to keep the inputs.
        note: What was left out and why, None if nothing.
    """

    draws: int
    prior_draws: int
    sites: list[str]
    inputs: bool
    note: str | None = None


def plan(cost: Cost, draws: int, prior_draws: int, max_bytes: int) -> Plan:
    """Fit an export into a budget.

    First fewer draws, down to 100; then without the prior groups; without the inputs, if these alone take a quarter of
    the budget; without the largest sites; at last fewer than 100 draws.

    Args:
        cost: What the parts take.
        draws: Draws a chain asked for.
        prior_draws: Draws from the prior a chain asked for.
        max_bytes: The budget.

    Raises:
        ValueError: If not even one draw fits.
    """
    sites, inputs = list(cost.sites), True
    wanted = cost.total(draws, prior_draws, sites, inputs)
    if wanted <= max_bytes:
        return Plan(draws, min(prior_draws, draws), sites, inputs)
    few, left_out = min(FEW, draws), []

    def fits() -> bool:
        return cost.total(few, prior_draws, sites, inputs) <= max_bytes

    if prior_draws and not fits():
        prior_draws = 0
        left_out.append("the prior groups")
    if cost.inputs > max_bytes // 4:
        inputs = False
        left_out.append("the inputs")
    dropped = []
    for name in sorted(cost.sites, key=cost.sites.__getitem__, reverse=True):
        if fits():
            break
        sites.remove(name)
        dropped.append(name)
    if dropped:
        left_out.append(f"the sites {', '.join(dropped)}")
    possible = bisect_right(range(1, draws + 1), max_bytes, key=lambda d: cost.total(d, prior_draws, sites, inputs))
    if possible == 0:
        least = cost.total(1, prior_draws, sites, inputs)
        raise ValueError(f"max_bytes={max_bytes} is too small: a single draw takes {size(least)}")
    note = (
        f"{cost.chains} x {draws} draws would take {size(wanted)}, above max_bytes={size(max_bytes)}: "
        f"exported {possible} draws a chain"
    )
    note += f", left out {' and '.join(left_out)}" if left_out else ""
    return Plan(possible, min(prior_draws, possible), sites, inputs, note)


def size(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"
