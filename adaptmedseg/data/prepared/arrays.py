"""The two array files of a prepared case: how intensities become numbers to store, and how files are opened.

Both are plain .npy files, so that a crop is a crop of a memory map.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from adaptmedseg.errors import UserError

IMAGE, MASKS = "image.npy", "masks.npy"
Size = tuple[int, int, int]
Slices = tuple[slice, slice, slice]
FINEST = 2000  # steps that SegVol's clip range is divided into at least, where 16 bits replace float32
_OPEN_FILES = 512


@dataclass(frozen=True)
class Scale:
    """What stored numbers mean: intensity = stored · slope + intercept, in the scanner's unit."""

    slope: float = 1.0
    intercept: float = 0.0

    def to_units(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers as a new float32 array in the scanner's unit."""
        intensities = stored.astype(np.float32)
        if self.slope != 1:
            intensities *= np.float32(self.slope)
        if self.intercept:
            intensities += np.float32(self.intercept)
        return intensities


def encode_intensities(image: np.ndarray, clip_range: float) -> tuple[np.ndarray, Scale]:
    """Intensities as numbers to store: 16 bits wherever that loses nothing worth keeping.

    Args:
        image: float32, any shape.
        clip_range: width of the range that SegVol's rule keeps of this image, in the image's unit.

    Returns:
        int16 or uint16 without any loss where all intensities are whole numbers of that range; else uint16 in even
        steps over the image's range where these are finer than `clip_range` / 2000; else float32 as it is.
    """
    low, high = float(image.min()), float(image.max())
    for dtype in (np.int16, np.uint16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            whole = image.astype(dtype)
            if np.array_equal(whole, image):
                return whole, Scale()
    step = (high - low) / np.iinfo(np.uint16).max
    if step * FINEST > clip_range:
        return image.astype(np.float32), Scale()
    return np.rint((image.astype(np.float64) - low) / step).astype(np.uint16), Scale(step, low)


def open_image(path: Path, shape: Size) -> np.ndarray:
    """Stored intensities (d, h, w), mapped and read-only. UserError where the file is damaged or of another shape."""
    array = _opened(path)
    if array.shape != shape:
        raise UserError(f"{path} has shape {array.shape} where the manifest says {shape}; run prepare again.")
    return array


def open_masks(path: Path) -> np.ndarray:
    """Stored bytes of all masks, mapped and read-only. UserError where the file is damaged or holds something else."""
    array = _opened(path)
    if array.ndim != 1 or array.dtype != np.uint8:
        raise UserError(f"{path} holds no masks but {array.dtype} of shape {array.shape}; run prepare again.")
    return array


def _opened(path: Path) -> np.ndarray:
    try:
        state = path.stat()
        return _map(str(path), state.st_mtime_ns, state.st_size, os.getpid())
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); run prepare again.") from error


# Opening costs as much as a crop, so that files stay open. Time and size are arguments so that a file which was written
# anew is opened anew; the process, because a worker must not share what its parent opened.
@lru_cache(maxsize=_OPEN_FILES)
def _map(path: str, changed: int, size: int, process: int) -> np.ndarray:
    # As a plain array, for every slice of numpy's own class for maps costs microseconds.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
