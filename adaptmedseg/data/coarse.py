"""Coarse copies of volumes by averaging, and back: for what is smooth or needs no detail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import zoom


def block_means(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Means over blocks as even as can be, float32 of `size`, which is nowhere larger than the image."""
    coarse: np.ndarray = image.astype(np.float32, copy=False)
    for axis, (cells, n) in enumerate(zip(size, image.shape, strict=True)):
        starts = np.arange(cells) * n // cells
        widths = np.diff(np.append(starts, n)).reshape([-1 if a == axis else 1 for a in range(image.ndim)])
        coarse = np.add.reduceat(coarse, starts, axis=axis) / widths.astype(np.float32)
    return coarse


def refine(coarse: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A coarse volume on a finer grid over the same field of view, linear between its cells' centres."""
    factors = [n / cells for n, cells in zip(size, coarse.shape, strict=True)]
    return zoom(coarse, factors, order=1, mode="nearest", grid_mode=True)
