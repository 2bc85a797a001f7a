"""The two array files of a prepared case: how they are written, and how a part of one is read.

Intensities lie in a plain .npy file, so that a crop of it is a crop of a memory map. Labels are compressed in small
blocks by Blosc2, for they are nearly empty and would cost half as much again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from adaptmedseg.errors import UserError

IMAGE, LABELS = "image.npy", "labels.b2nd"
Slices = tuple[slice, slice, slice]
WHOLE: Slices = (slice(None), slice(None), slice(None))
FINEST = 2000  # steps that SegVol's clip range is divided into at least, where 16 bits replace float32
_CHUNK, _BLOCK = (32, 128, 128), (16, 32, 32)
_OPEN_FILES = 256
# The names of a Blosc2 file's parts, in its header. Beside arrays such files can hold expressions and functions, which
# some releases of Blosc2 run when they open them: a file with anything but an array is not given to it.
_PLAIN, _ARRAY_ALONE = slice(91, 99), b"\xde\x00\x01\xa4b2nd"


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


def write_labels(path: Path, bits: np.ndarray) -> None:
    """Write bit masks (d, h, w); the same masks give the same bytes."""
    blosc2.asarray(
        bits,
        urlpath=str(path),
        mode="w",
        chunks=tuple(min(size, n) for size, n in zip(_CHUNK, bits.shape, strict=True)),
        blocks=tuple(min(size, n) for size, n in zip(_BLOCK, bits.shape, strict=True)),
        cparams={"codec": blosc2.Codec.LZ4, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1},
    )


def open_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Stored intensities as a read-only memory map. UserError where the file is damaged or of another shape."""
    return _opened(path, shape, _map_image)


def read_labels(path: Path, shape: tuple[int, int, int], slices: Slices = WHOLE) -> np.ndarray:
    """A part of the bit masks. UserError where the file is damaged or of another shape."""
    opened = _opened(path, shape, _map_labels)
    try:
        return opened[slices]
    except RuntimeError as error:
        raise UserError(f"{path} is damaged ({error}); run prepare again.") from error


def _opened(path: Path, shape: tuple[int, int, int], opener: Any) -> Any:
    try:
        state = path.stat()
        array = opener(str(path), state.st_mtime_ns, state.st_size, os.getpid())
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}); run prepare again.") from error
    if array.shape != shape:
        raise UserError(f"{path} has shape {array.shape} where the manifest says {shape}; run prepare again.")
    return array


# Opening costs as much as a crop, so that files stay open. Time and size are arguments so that a file which was written
# anew is opened anew; the process, because a worker must not share what its parent opened.


@lru_cache(maxsize=_OPEN_FILES)
def _map_image(path: str, changed: int, size: int, process: int) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


@lru_cache(maxsize=_OPEN_FILES)
def _map_labels(path: str, changed: int, size: int, process: int) -> Any:
    with open(path, "rb") as file:
        if file.read(_PLAIN.stop)[_PLAIN] != _ARRAY_ALONE:
            raise ValueError("it holds something else than a plain array")
    return blosc2.open(path, mode="r", mmap_mode="r", dparams={"nthreads": 1})
