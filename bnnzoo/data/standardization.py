"""Zero mean and unit variance, and the way back to the user's own units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Standardization:
    """Location and scale of inputs and targets.

    Standardized inputs are ``(x - x_loc) / x_scale``, and the same goes for targets. A pair that is ``None`` leaves its
    values as they are. The statistics are kept in float64 on the CPU; :meth:`x` and :meth:`y` give back the dtype and
    the device of what they are given (integers become torch's default dtype).

    Attributes:
        x_loc: Location of the inputs, shape of one input (``[Q]`` for tables), or None.
        x_scale: Scale of the inputs, positive, same shape, or None.
        y_loc: Location of the targets, scalar for one output, ``[C]`` for several, or None.
        y_scale: Scale of the targets, positive, same shape, or None.

    Raises:
        ValueError: If a location comes without its scale, shapes differ, or a scale is not positive and finite.
    """

    x_loc: Tensor | None = None
    x_scale: Tensor | None = None
    y_loc: Tensor | None = None
    y_scale: Tensor | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, torch.as_tensor(value).detach().to("cpu", torch.float64))
        for side, loc, scale in (("x", self.x_loc, self.x_scale), ("y", self.y_loc, self.y_scale)):
            if loc is None and scale is None:
                continue
            if loc is None or scale is None:
                raise ValueError(f"{side}_loc and {side}_scale belong together: give both or neither")
            if loc.shape != scale.shape:
                raise ValueError(
                    f"{side}_loc has shape {tuple(loc.shape)} and {side}_scale {tuple(scale.shape)}: they must be equal"
                )
            if not bool(torch.isfinite(loc).all()) or not bool((torch.isfinite(scale) & (scale > 0)).all()):
                raise ValueError(f"{side}_loc must be finite and {side}_scale finite and positive")

    @classmethod
    def fit(cls, x: Tensor | None = None, y: Tensor | None = None) -> Standardization:
        """Take mean and standard deviation over the rows of ``x`` and ``y``.

        The standard deviation is that of the population (divisor N). A column that never changes has scale 1, so that
        it becomes 0 and not infinite.

        Args:
            x: Inputs [N, ...], or None to leave inputs as they are.
            y: Targets [N] or [N, C], or None to leave targets as they are.
        """
        x_loc, x_scale = (None, None) if x is None else _moments(x)
        y_loc, y_scale = (None, None) if y is None else _moments(y)
        return cls(x_loc, x_scale, y_loc, y_scale)

    def x(self, x: Tensor) -> Tensor:
        """Return the standardized inputs [..., *input shape]; dtype and device are kept."""
        return _forward(x, self.x_loc, self.x_scale, "x")

    def y(self, y: Tensor) -> Tensor:
        """Return the standardized targets; dtype and device are kept."""
        return _forward(y, self.y_loc, self.y_scale, "y")

    def inverse_x(self, x: Tensor) -> Tensor:
        """Return standardized inputs in their own units."""
        return _backward(x, self.x_loc, self.x_scale, "x")

    def inverse_y(self, y: Tensor) -> Tensor:
        """Return standardized targets in their own units."""
        return _backward(y, self.y_loc, self.y_scale, "y")

    def target_scale(self) -> tuple[Tensor, Tensor]:
        """Return ``(y_loc, y_scale)`` in float64, 0 and 1 where targets are left as they are."""
        if self.y_loc is None or self.y_scale is None:
            return torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        return self.y_loc, self.y_scale

    def state_dict(self) -> dict[str, Tensor]:
        """Return the statistics by name, the absent ones left out: only tensors, so it saves and loads safely."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Standardization:
        """Rebuild a standardization from what :meth:`state_dict` returned.

        Raises:
            ValueError: If the state holds an unknown name.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(state) - set(known))
        if unknown:
            raise ValueError(f"unknown entries {unknown} in the state of a Standardization: it holds {known}")
        return cls(**state)

    def __repr__(self) -> str:
        parts = [f"{name}={list(value.shape)}" for name, value in self.state_dict().items()]
        return f"Standardization({', '.join(parts)})"


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"cannot standardize by values of shape {tuple(values.shape)}: there are no rows")
    wide = values.detach().to("cpu", torch.float64)
    loc = wide.mean(0)
    # Compared exactly: the variance of a constant column can come out as 1e-34 instead of 0.
    constant = wide.amin(0) == wide.amax(0)
    loc = torch.where(constant, wide[0], loc)
    scale = torch.where(constant, torch.ones_like(loc), (wide - loc).square().mean(0).sqrt())
    # Subnormal spreads can underflow to 0 when squared.
    return loc, torch.where(scale > 0, scale, torch.ones_like(scale))


def _wide(values: Tensor) -> torch.dtype:
    # Subtracting in float64 keeps the digits of columns with a large offset; Apple's mps has no float64.
    return torch.float32 if values.device.type == "mps" else torch.float64


def _fitting(values: Tensor, loc: Tensor, side: str) -> Tensor:
    if loc.ndim and tuple(values.shape[-loc.ndim :]) != tuple(loc.shape):
        raise ValueError(
            f"{side} has shape {tuple(values.shape)}, but its standardization is for rows of shape {tuple(loc.shape)}"
        )
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def _forward(values: Tensor, loc: Tensor | None, scale: Tensor | None, side: str) -> Tensor:
    if loc is None or scale is None:
        return values
    values = _fitting(values, loc, side)
    dtype = _wide(values)
    return ((values.to(dtype) - loc.to(values.device, dtype)) / scale.to(values.device, dtype)).to(values.dtype)


def _backward(values: Tensor, loc: Tensor | None, scale: Tensor | None, side: str) -> Tensor:
    if loc is None or scale is None:
        return values
    values = _fitting(values, loc, side)
    dtype = _wide(values)
    return (values.to(dtype) * scale.to(values.device, dtype) + loc.to(values.device, dtype)).to(values.dtype)
