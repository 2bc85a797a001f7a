"""Zoom-out-zoom-in (SegVol): where to look again at full resolution, and what to ask there. Pure functions on a crop.

A coarse look at the whole volume finds the region of a structure; windows of the model's input size slide over that
region at the volume's own resolution, each asked with the structure's prompts as far as they reach into it, and with
the box of what the coarse look found there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
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
    if mask.device.type == "cpu":  # numpy stops at the first hit of a row, and is tens of times faster
        voxels = mask.numpy()
        lines = [torch.from_numpy(np.any(voxels, axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    else:
        lines = [mask.any(dim=2).any(dim=1), mask.any(dim=2).any(dim=0), mask.any(dim=1).any(dim=0)]
    hits = [line.nonzero() for line in lines]
    return [(int(hit[0]), int(hit[-1])) for hit in hits] if all(len(hit) for hit in hits) else None


def foreground_box(foreground: Tensor) -> Region | None:
    """The tightest region round the true voxels of a mask (d, h, w); None where it is empty."""
    extent = true_extent(foreground)
    if extent is None:
        return None
    return Region(_size3([low for low, _ in extent]), _size3([high + 1 for _, high in extent]))


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


@dataclass(frozen=True)
class ZoomPlan:
    """Where a structure is looked at again: `windows`, and the `region` whose logits they replace.

    `fits`: whether its coarse foreground is no larger than a window, so that a box prompt means all of it.
    """

    region: Region
    windows: list[Window]
    fits: bool


def plan_zoom(foreground: Tensor, size: Size3, lattice: WindowLattice) -> ZoomPlan | None:
    """Windows of `size` for a coarse foreground (d, h, w); None where that is empty.

    On the lattice "region", the reference's, the foreground's box grows to at least the input size, half of what is
    missing on each side, rounded down and kept inside the volume; windows start at its corner, overlap by half and see
    nothing outside of it.

    On the lattice "volume" windows start at multiples of a quarter of their size, overlap by half and see what is
    there: structures that lie together, and a region that grew by a click, share windows and with them embeddings. They
    cover the box with a margin of an eighth of a window, for the coarse look may be short of a structure's rim.
    """
    box = foreground_box(foreground)
    if box is None:
        return None
    shape = _size3(foreground.shape)
    fits = all(n <= window for n, window in zip(box.shape, size, strict=True))
    if lattice == "region":
        region = _grown(box, shape, size)
        starts = [
            _starts(a, b, (a, b), w, max(w // 2, 1), a) for a, b, w in zip(region.start, region.stop, size, strict=True)
        ]
        bounds = region
    else:
        starts = [_lattice_starts(*axis) for axis in zip(box.start, box.stop, shape, size, strict=True)]
        bounds = Region((0, 0, 0), shape)
        region = Region(
            _size3([max(axis[0], 0) for axis in starts]),
            _size3([min(axis[-1] + w, n) for axis, w, n in zip(starts, size, shape, strict=True)]),
        )
    return ZoomPlan(region, [Window(_size3(start), bounds) for start in product(*starts)], fits)


def _grown(box: Region, shape: Size3, size: Size3) -> Region:
    start, stop = [], []
    for low, high, full, window in zip(box.start, box.stop, shape, size, strict=True):
        pad = max(0, window - (high - low)) // 2
        start.append(max(0, low - pad))
        stop.append(min(full, high + pad))
    return Region(_size3(start), _size3(stop))


def _lattice_starts(low: int, high: int, full: int, window: int) -> list[int]:
    """Starts at multiples of a quarter window that cover low ≤ i < high and a margin of an eighth."""
    margin, quarter = window // 8, max(window // 4, 1)
    low, high = max(low - margin, 0), min(high + margin, full)
    return _starts(low, high, (0, full), window, min(2 * quarter, window), low // quarter * quarter)


def _starts(low: int, high: int, bounds: tuple[int, int], window: int, stride: int, first: int) -> list[int]:
    """Starts of the windows of an axis that cover low ≤ i < high, from `first` ≤ low on, `stride` apart.

    The last is shifted to stay within the bounds; bounds smaller than a window are centred in one.
    """
    start, stop = bounds
    if stop - start <= window:
        return [start - (window - (stop - start)) // 2]
    starts = [min(first, stop - window)]
    while starts[-1] + window < high:
        starts.append(min(starts[-1] + stride, stop - window))
    return starts


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
    prompt: StructurePrompt, window: Window, size: Size3, foreground: Tensor, *, fits: bool
) -> StructurePrompt | None:
    """What a window is asked, in its own voxels; None where there is nothing to ask.

    foreground (d, h, w) is the coarse look at the crop. A box prompt is restricted to the window where the structure
    `fits` into one; else, and beside points that fall into it, the window gets the box of the coarse foreground in it.
    A name or task alone stays as it is. (The reference forgets the padding of windows at the volume's rim and shifts
    the prompts there, and asks windows without foreground for a box at −1; both are errors of its script, not of the
    weights.)
    """
    start = torch.tensor(window.start, dtype=torch.float32)
    points, labels, box = None, None, None
    if prompt.points is not None and prompt.labels is not None:
        local = prompt.points.float() - start
        inside = ((local >= -0.5) & (local < torch.tensor(size) - 0.5)).all(dim=1)
        if inside.any():
            points, labels = local[inside], prompt.labels[inside]
    if prompt.box is not None and fits:
        box = _restrict(prompt.box.float() - start, size)
    if box is None and (prompt.box is not None or prompt.points is not None):
        box = _foreground_box(foreground, window, size)
    located = prompt.box is not None or prompt.points is not None
    if located and not prompt.text and points is None and box is None:
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
