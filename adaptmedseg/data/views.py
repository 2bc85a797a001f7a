"""The network's views of a volume: resizing images and labels to a fixed size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

ResizeMode = Literal["nearest-exact", "smooth"]
Size = tuple[int, int, int]


def resize_image(x: torch.Tensor, size: Size, mode: ResizeMode) -> torch.Tensor:
    """Resize images (b, c, d, h, w) to `size` (d, h, w).

    Args:
        x: floating point, on any device.
        size: target size in voxels.
        mode: 'nearest-exact' is SegVol's own view; 'smooth' averages along the axes that shrink, which keeps thin
            structures that nearest neighbour would skip, then interpolates linearly along those that grow.

    Raises:
        ValueError: `x` is not 5D or the mode is unknown.
    """
    _check(x, size)
    if mode == "nearest-exact":
        return F.interpolate(x, size=size, mode="nearest-exact")
    if mode != "smooth":
        raise ValueError(f"unknown resize mode {mode!r}; choose 'nearest-exact' or 'smooth'")
    shrunk = [min(old, new) for old, new in zip(x.shape[2:], size, strict=True)]
    if shrunk != list(x.shape[2:]):
        x = F.interpolate(x, size=shrunk, mode="area")
    if shrunk != list(size):
        x = F.interpolate(x, size=size, mode="trilinear", align_corners=False)
    return x


def resize_labels(x: torch.Tensor, size: Size) -> torch.Tensor:
    """Resize labels, masks or bit masks (b, c, d, h, w) of any dtype to `size` (d, h, w) by 'nearest-exact'.

    Voxels are picked, never computed, so that every value comes back exactly as it was.
    """
    _check(x, size)
    for axis, (old, new) in enumerate(zip(x.shape[2:], size, strict=True), start=2):
        nearest = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new)).long().clamp(max=old - 1)
        x = x.index_select(axis, nearest.to(x.device))
    return x


def _check(x: torch.Tensor, size: Size) -> None:
    if x.ndim != 5:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (b, c, d, h, w)")
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"size is {size}, expected three positive numbers (d, h, w)")
