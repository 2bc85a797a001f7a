"""One small picture of a case: three planes with every structure outlined in its own colour.

Radiological convention: the patient's right is on the left of axial and coronal planes; anterior is on the left of
sagittal ones; superior is up.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from adaptmedseg.data.normalise import Curve
from adaptmedseg.evaluation.style import PALETTE

HEIGHT, GAP = 180, 6  # pixels
COLOURS = tuple(tuple(int(code[i : i + 2], 16) for i in (1, 3, 5)) for code in ("#3ddc84", "#ff5fdc", *PALETTE[1:]))
_WIDEST = 300


def case_png(
    image: np.ndarray,
    masks: Mapping[str, np.ndarray],
    spacing: Sequence[float],
    window: tuple[float, float],
    colours: Mapping[str, tuple[int, ...]],
) -> bytes:
    """An axial, a coronal and a sagittal plane through the middle of what is marked.

    Args:
        image: (d, h, w) in its own unit.
        masks: structure to mask (d, h, w).
        spacing: (d, h, w) in mm, so that planes have the right proportions.
        window: the intensities shown as black and white.
        colours: structure to RGB.
    """
    marked = np.zeros(image.shape, bool)
    for mask in masks.values():
        marked |= mask
    at = [_fullest(marked, axis) for axis in range(3)]
    grey = Curve((window[0], max(window[1], window[0] + 1e-6)), (0.0, 255.0))
    planes = []
    for axis in range(3):
        base = grey(image.take(at[axis], axis)).astype(np.uint8)
        colour = np.repeat(base[..., None], 3, axis=2)
        rows, columns = (size for other, size in enumerate(spacing) if other != axis)
        scaled = _scaled(colour, rows, columns, Image.Resampling.BILINEAR)
        for name, mask in masks.items():
            shown = _scaled(mask.take(at[axis], axis).astype(np.uint8), rows, columns, Image.Resampling.NEAREST)
            scaled[_outline(shown > 0)] = colours[name]
        planes.append(scaled[::-1, ::-1])  # d, h, w run to superior, anterior, right; pictures down and to the right
    return _png(planes)


def _fullest(marked: np.ndarray, axis: int) -> int:
    areas = marked.sum(axis=tuple(a for a in range(3) if a != axis))
    return int(areas.argmax()) if areas.any() else marked.shape[axis] // 2


def _scaled(plane: np.ndarray, rows_mm: float, columns_mm: float, how: Image.Resampling) -> np.ndarray:
    height_mm, width_mm = plane.shape[0] * rows_mm, plane.shape[1] * columns_mm
    scale = min(HEIGHT / height_mm, _WIDEST / width_mm)
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    return np.array(Image.fromarray(plane).resize(size, how))


def _outline(mask: np.ndarray) -> np.ndarray:
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner


def _png(planes: Sequence[np.ndarray]) -> bytes:
    height = max(plane.shape[0] for plane in planes)
    width = sum(plane.shape[1] for plane in planes) + GAP * (len(planes) - 1)
    sheet, left = np.zeros((height, width, 3), np.uint8), 0
    for plane in planes:
        top = (height - plane.shape[0]) // 2
        sheet[top : top + plane.shape[0], left : left + plane.shape[1]] = plane
        left += plane.shape[1] + GAP
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "PNG", optimize=True)
    return stream.getvalue()
