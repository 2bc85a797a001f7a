"""How alike two scans are, whatever was done to one of them: resampled, rescaled, cut at the edges.

Every scan is reduced to a small volume of fixed voxel size round the middle of its foreground, from which slow changes
(coil profiles, the outline of the body) are taken away. The middle block of one is then laid over the other at every
shift of a few centimetres, and the highest normalised cross-correlation counts: 1 for the same voxels, near 0 for
unrelated ones. It does not change where intensities are multiplied or shifted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

VOXEL_MM = 4.0
WINDOW = (24, 48, 48)  # the small volume, (d, h, w) in voxels of VOXEL_MM
BLOCK = (12, 24, 24)  # the middle block that is laid over the other scan
# Measured on MRI and CT (docs/datasets.md): copies that were cut, resampled or changed in contrast stay above, scans of
# different people below. An image that shows less than half of the block along an axis, as a cut-out organ does, is
# nearly as like the same organ of other people: of such images only those count as one that are unchanged.
THRESHOLD, NARROW_THRESHOLD = 0.75, 0.95
_NARROW = 0.5
_BLUR_VOXELS = 3.0
_AT_ONCE = 32  # windows that a block is laid over in one go


@dataclass(frozen=True, eq=False)
class Signature:
    """A scan made comparable: spectra of its window and of its middle block, the window's local deviations, and whether
    the image is narrower than the block asks for."""

    window: np.ndarray
    block: np.ndarray
    deviation: np.ndarray
    narrow: bool


def signature(image: np.ndarray, spacing: tuple[float, float, float]) -> Signature:
    """The signature of an image (d, h, w) in any unit with its spacing (d, h, w) in mm."""
    small = _window(_resampled(image, spacing))
    detail = small - ndimage.gaussian_filter(small, _BLUR_VOXELS)
    start = [(w - b) // 2 for w, b in zip(WINDOW, BLOCK, strict=True)]
    middle = detail[tuple(slice(s, s + b) for s, b in zip(start, BLOCK, strict=True))]
    centred = middle - middle.mean()
    norm = float(np.linalg.norm(centred))
    block = centred / norm if norm > 0 else centred
    shown = [n * size / (b * VOXEL_MM) for n, size, b in zip(image.shape, spacing, BLOCK, strict=True)]
    return Signature(
        fft.rfftn(detail.astype(np.float32), WINDOW),
        np.conj(fft.rfftn(block.astype(np.float32), WINDOW)),
        _local_norm(detail),
        min(shown) < _NARROW,
    )


def similarities(looks: Sequence[Signature], progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """The similarity of each of n scans with each, (n, n): the highest normalised cross-correlation of either's middle
    block with the other, -1 to 1, symmetric. `progress` is called with (scans compared with all, scans in all)."""
    best = np.full((len(looks), len(looks)), -1.0, np.float32)
    for number, look in enumerate(looks):
        for start in range(0, len(looks), _AT_ONCE):
            others = looks[start : start + _AT_ONCE]
            # Places at which the block lies within the window are the same in a circular correlation.
            laid = fft.irfftn(np.stack([other.window for other in others]) * look.block, WINDOW, axes=(1, 2, 3))
            d, h, w = look.deviation.shape
            valid = laid[:, :d, :h, :w] / np.stack([other.deviation for other in others])
            best[number, start : start + len(others)] = valid.max(axis=(1, 2, 3))
        if progress is not None:
            progress(number + 1, len(looks))
    return np.maximum(best, best.T)


def twins(
    looks: Sequence[Signature], threshold: float = THRESHOLD, progress: Callable[[int, int], None] | None = None
) -> list[tuple[int, int, float]]:
    """Pairs of scans (first < second) that are one image, or nearly, with their similarity."""
    alike = similarities(looks, progress)
    narrow = np.array([look.narrow for look in looks], bool)
    needed = np.where(narrow[:, None] | narrow, max(threshold, NARROW_THRESHOLD), threshold)
    pairs = np.argwhere(np.triu(alike >= needed, k=1))
    return [(int(i), int(j), round(float(alike[i, j]), 3)) for i, j in pairs]


def _resampled(image: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """The image at VOXEL_MM, smoothed along the axes that shrink."""
    factors = [size / VOXEL_MM for size in spacing]
    steps = [max(1, int(VOXEL_MM / size / 3)) for size in spacing]  # far finer axes need not be smoothed whole
    image = ndimage.uniform_filter(image.astype(np.float32), steps)[tuple(slice(None, None, step) for step in steps)]
    # Every axis keeps a cell, however thin it is.
    factors = [max(f * step, 1 / n) for f, step, n in zip(factors, steps, image.shape, strict=True)]
    sigmas = [max(0.0, 0.4 / factor - 0.2) for factor in factors]
    return ndimage.zoom(ndimage.gaussian_filter(image, sigmas), factors, order=1, grid_mode=True, mode="nearest")


def _window(small: np.ndarray) -> np.ndarray:
    """The middle of a volume, filled up with its outermost values where it is smaller than the window."""
    for axis, size in enumerate(WINDOW):
        extra = size - small.shape[axis]
        if extra > 0:
            width = [(0, 0)] * 3
            width[axis] = (extra // 2, extra - extra // 2)
            small = np.pad(small, width, mode="edge")
        elif extra < 0:
            small = small.take(range(-extra // 2, -extra // 2 + size), axis)
    return small


def _local_norm(detail: np.ndarray) -> np.ndarray:
    """For every place of the block within the window, the norm of what lies under it after its mean is taken away."""
    count = float(np.prod(BLOCK))
    sums, squares = _box_sums(detail), _box_sums(detail**2)
    variance = np.maximum(squares - sums**2 / count, 0)
    floor = 1e-3 * float(variance.max()) if variance.max() > 0 else 1.0
    return np.sqrt(np.maximum(variance, floor)).astype(np.float32)


def _box_sums(values: np.ndarray) -> np.ndarray:
    sums = np.asarray(values, np.float64)
    for axis, size in enumerate(BLOCK):
        total = np.cumsum(np.insert(sums, 0, 0, axis), axis)
        sums = total.take(range(size, total.shape[axis]), axis) - total.take(range(total.shape[axis] - size), axis)
    return sums
