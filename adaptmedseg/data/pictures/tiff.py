"""TIFF of one page: the depths and layouts of science that Pillow does not know."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tifffile

from adaptmedseg.errors import UserError

LARGEST = 1 << 28  # pixels of a picture: 16,384 × 16,384
_ALPHA = {tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA}
_GREY = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE)


def too_large(path: Path) -> UserError:
    """What is said of a picture of more than `LARGEST` pixels."""
    return UserError(f"{path}: has more than {LARGEST:,} pixels; cut it into parts first")


def tiff_pixels(path: Path, content: bytes) -> np.ndarray | None:
    """The array (h, w) or (h, w, channels) of a file's `content`, white high; None where Pillow is to read it, which
    knows the compressions.

    UserError for several pages, too many pixels, channels that are no colours, and what neither of them reads rightly.
    Whatever tifffile raises for a damaged file goes through.
    """
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        if len(file.pages) > 1:
            raise UserError(
                f"{path}: holds {len(file.pages)} pages; save the one that is meant as a picture of its own"
            )
        page = file.pages.first
        if page.size > 4 * LARGEST:
            raise too_large(path)
        bare = page.compression in (tifffile.COMPRESSION.NONE, tifffile.COMPRESSION.ADOBE_DEFLATE)
        negative = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        if negative and page.bitspersample <= 8:
            return None  # Pillow turns these round, and deeper ones not
        if negative and (not bare or page.dtype is None or page.dtype.kind != "u"):
            raise UserError(f"{path}: has white as zero in more than 8 bits; save it with black as zero, as most are")
        if not bare or page.photometric not in (*_GREY, tifffile.PHOTOMETRIC.RGB):
            return None
        if page.photometric in _GREY and set(page.extrasamples) - _ALPHA:
            raise UserError(
                f"{path}: has {page.samplesperpixel} channels, which are no colours; save those that are meant as "
                "a grey or RGB picture"
            )
        pixels = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
        return np.iinfo(pixels.dtype).max - pixels if negative else pixels
