"""Zoom-out-zoom-in (SegVol): where to look again at full resolution, and what to ask there. Pure functions on a crop.

A coarse look at the whole volume finds the region of a structure; windows of the model's input size slide over that
region at the volume's own resolution, each asked with the structure's prompts as far as they reach into it, and with
the box of what the coarse look found there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptmedseg.models.prompts import StructurePrompt

Size3 = tuple[int, int, int]
WindowLattice = Literal["volume", "region"]


@dataclass(frozen=True)
class Region:
    """Voxels start ≤ i < stop along (d, h, w) of the crop."""

    start: Size3
    stop: Size3

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        d, h, w = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return d, h, w

    @property
    def shape(self) -> Size3:
        d, h, w = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return d, h, w


def _size3(values: Sequence[int]) -> Size3:
    d, h, w = values
    return d, h, w


def true_extent(mask: Tensor) -> list[tuple[int, int]] | None:
    """First and last true voxel of each axis of a mask (d, h, w); None where it is empty."""
    extent = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        hits = mask.any(dim=others[1]).any(dim=others[0]).nonzero()
        if not len(hits):
            return None
        extent.append((int(hits[0]), int(hits[-1])))
    return extent


def zoom_region(foreground: Tensor, size: Size3) -> Region | None:
    """The box of a coarse foreground (d, h, w), grown where it is smaller than the input size.

    Each side gets half of what is missing, rounded down, and stays inside the volume: the reference's rule. None where
    there is no foreground.
    """
    extent = true_extent(foreground)
    if extent is None:
        return None
    start, stop = [], []
    for (low, high), window, full in zip(extent, size, foreground.shape, strict=True):
        pad = max(0, window - (high - low + 1)) // 2
        start.append(max(0, low - pad))
        stop.append(min(full, high + pad + 1))
    return Region(_size3(start), _size3(stop))


@dataclass(frozen=True)
class Window:
    """A window of the model's input size that starts at voxel `start` of the crop; zeros outside of `bounds`."""

    start: Size3
    bounds: Region

    def cut(self, image: Tensor, size: Size3) -> Tensor:
        """The voxels (d, h, w) = `size` of an image (d, h, w) of the crop, zero outside of the bounds."""
        inside = self.inside(size)
        pads = [
            pad
            for a, low, high, n in reversed(list(zip(self.start, inside.start, inside.stop, size, strict=True)))
            for pad in (low - a, a + n - high)
        ]
        return F.pad(image[inside.slices], pads)

    def inside(self, size: Size3) -> Region:
        """The part of the window that lies in the bounds."""
        pairs = list(zip(self.start, size, self.bounds.start, self.bounds.stop, strict=True))
        start = [max(a, low) for a, _, low, _ in pairs]
        stop = [min(a + n, high) for a, n, _, high in pairs]
        return Region(_size3(start), _size3(stop))


def _axis_starts(low: int, high: int, full: int, window: int, lattice: WindowLattice) -> list[int]:
    """Starts of the windows that cover low ≤ i < high of an axis of `full` voxels, overlapping by half or more."""
    first_bound, last_bound = (low, high) if lattice == "region" else (0, full)
    extent = last_bound - first_bound
    if extent <= window:
        return [first_bound - (window - extent) // 2]
    stride = max(window // 2, 1)
    starts = [low if lattice == "region" else min(low // stride * stride, full - window)]
    while starts[-1] + window < high:
        starts.append(min(starts[-1] + stride, last_bound - window))
    return starts


def windows_over(region: Region, shape: Size3, size: Size3, lattice: WindowLattice) -> list[Window]:
    """Windows of `size` that cover a region of a crop of `shape`, overlapping by half.

    On the lattice "region" they start at the region's own corner and see nothing outside of it, as in the reference. On
    the lattice "volume" they start at multiples of half a window and see what is there, so that structures whose
    regions differ, and a region that grew by a click, share windows and with them embeddings; it costs at most one
    more window an axis.
    """
    axes = zip(region.start, region.stop, shape, size, strict=True)
    starts = [_axis_starts(low, high, full, window, lattice) for low, high, full, window in axes]
    bounds = region if lattice == "region" else Region((0, 0, 0), shape)
    return [Window(_size3(start), bounds) for start in product(*starts)]


def overlap(window: Window, region: Region, size: Size3) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window and a region meet: slices of the region's own voxels, and of the window's."""
    low = [max(a, b) for a, b in zip(window.start, region.start, strict=True)]
    high = [min(a + n, b) for a, n, b in zip(window.start, size, region.stop, strict=True)]
    here = tuple(slice(i - o, j - o) for i, j, o in zip(low, high, region.start, strict=True))
    there = tuple(slice(i - o, j - o) for i, j, o in zip(low, high, window.start, strict=True))
    return here, there


def window_counts(windows: Iterable[Window], region: Region, size: Size3) -> list[Tensor]:
    """How many windows of a product of starts cover each voxel of a region: one factor (n,) an axis, float32."""
    factors = []
    for axis, n in enumerate(region.shape):
        count = torch.zeros(n)
        for start in {window.start[axis] for window in windows}:
            low = start - region.start[axis]
            count[max(low, 0) : max(low + size[axis], 0)] += 1
        factors.append(count)
    return factors


def prompt_in_window(
    prompt: StructurePrompt, window: Window, size: Size3, foreground: Tensor, *, only_window: bool
) -> StructurePrompt | None:
    """What a window is asked, in its own voxels; None where there is nothing to ask.

    foreground (d, h, w) is the coarse look at the crop. A box prompt is restricted to the window where that is the only
    one; else, and beside points that fall into it, the window gets the box of the coarse foreground in it. A name alone
    stays a name. (The reference forgets the padding of windows at the volume's rim and shifts the prompts there, and
    asks windows without foreground for a box at −1; both are errors of its script, not of the weights.)
    """
    start = torch.tensor(window.start, dtype=torch.float32)
    points, labels, box = None, None, None
    if prompt.points is not None and prompt.labels is not None:
        local = prompt.points.float() - start
        inside = ((local >= -0.5) & (local < torch.tensor(size) - 0.5)).all(dim=1)
        if inside.any():
            points, labels = local[inside], prompt.labels[inside]
    if prompt.box is not None and only_window:
        box = _restrict(prompt.box.float() - start, size)
    if box is None and (prompt.box is not None or prompt.points is not None):
        box = _foreground_box(foreground, window, size)
    if not prompt.text and points is None and box is None:
        return None
    return StructurePrompt(prompt.structure, prompt.text, points, labels, box)


def _restrict(box: Tensor, size: Size3) -> Tensor | None:
    """A box (2, 3) cut to the voxels of a window; None where they do not meet."""
    last = torch.tensor(size, dtype=torch.float32) - 1
    if (box[1] < 0).any() or (box[0] > last).any():
        return None
    return torch.minimum(box.clamp(min=0), last)


def _foreground_box(foreground: Tensor, window: Window, size: Size3) -> Tensor | None:
    """First and last voxel (2, 3) of the foreground in a window, in its own voxels; None where it has none."""
    inside = window.inside(size)
    extent = true_extent(foreground[inside.slices])
    if extent is None:
        return None
    offset = [low - a for low, a in zip(inside.start, window.start, strict=True)]
    return torch.tensor([[pair[end] + o for pair, o in zip(extent, offset, strict=True)] for end in (0, 1)]).float()
