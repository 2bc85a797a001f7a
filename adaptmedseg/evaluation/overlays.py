"""Pictures of a case: image, truth and prediction in three planes through the structure.

Pictures are shown in the radiological convention: the patient's right is on the left of axial and coronal pictures,
anterior is up in axial ones and on the left of sagittal ones, superior is up.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from adaptmedseg.evaluation import style
from adaptmedseg.evaluation.records import Record

CONVENTION = (
    "Radiological convention: the patient's right is on the left of the picture (axial, coronal), anterior on the "
    "left (sagittal). Truth: solid green; prediction: dashed magenta. The white bar is 2 cm long."
)
TRUTH, PREDICTION = "#3ddc84", "#ff5fdc"
RANKS = ("worst", "median", "best")
Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class _Plane:
    name: str
    axis: int  # of the volume (d, h, w), along which the plane is taken
    letters: tuple[str, str, str, str]  # at the left, right, top and bottom edge


# Rows and columns are the two remaining axes in order; both are reversed in every plane, since d, h and w run to
# superior, anterior and right while pictures run down and to the right.
_PLANES = (
    _Plane("axial", 0, ("R", "L", "A", "P")),
    _Plane("coronal", 1, ("R", "L", "S", "I")),
    _Plane("sagittal", 2, ("A", "P", "S", "I")),
)


def largest_slice(mask: npt.NDArray[np.bool_], axis: int) -> int:
    """Index along `axis` of the plane in which `mask` has its largest area; the middle one when it's empty."""
    area = mask.sum(axis=tuple(other for other in range(mask.ndim) if other != axis))
    return int(area.argmax()) if area.any() else mask.shape[axis] // 2


def window(mask: npt.NDArray[np.bool_], spacing: Sequence[float]) -> tuple[slice, ...]:
    """The part of the volume to show: the mask's box with a margin of half its size, at least 20 mm; all if empty."""
    if not mask.any():
        return tuple(slice(0, side) for side in mask.shape)
    parts: list[slice] = []
    for axis, side in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        start, stop = int(inside[0]), int(inside[-1]) + 1
        margin = int(np.ceil(max(0.5 * (stop - start), 20 / spacing[axis])))
        parts.append(slice(max(start - margin, 0), min(stop + margin, side)))
    return tuple(parts)


def overlay_png(
    image: Array,
    truth: Array,
    prediction: Array,
    spacing: tuple[float, float, float],
    width_px: int = 600,
) -> bytes:
    """PNG of the three planes through the truth's largest areas (the prediction's when there is no truth).

    `image` is any grey-value volume `(d, h, w)` in the canonical frame (superior, anterior, right), the masks have its
    shape, `spacing` is in mm in the same order. Raises ValueError for different shapes.
    """
    if not image.shape == truth.shape == prediction.shape or image.ndim != 3:
        raise ValueError(f"image, truth and prediction differ: {image.shape}, {truth.shape}, {prediction.shape}")
    true, predicted = truth.astype(bool), prediction.astype(bool)
    anchor = true if true.any() else predicted
    shown = window(true | predicted, spacing)
    greys = _grey_range(image[shown])
    sizes = [_size_mm(plane.axis, shown, spacing) for plane in _PLANES]
    with style.settings():
        figure = Figure(figsize=(width_px / 100, width_px / 300 + 0.2), dpi=100, facecolor="black")
        for place, (plane, size) in enumerate(zip(_PLANES, sizes, strict=True)):
            axes = figure.add_axes((place / 3 + 0.002, 0.0, 0.3293, (width_px / 300) / (width_px / 300 + 0.2)))
            index = largest_slice(anchor, plane.axis)
            planes = [_plane(volume, plane.axis, index, shown) for volume in (image, true, predicted)]
            _draw(axes, planes, size, plane, greys)
            figure.text(place / 3 + 0.167, 0.985, plane.name, color="white", fontsize=8, ha="center", va="top")
        return _compact_png(figure)


def _plane(volume: Array, axis: int, index: int, shown: tuple[slice, ...]) -> Array:
    part = tuple(slice(index, index + 1) if other == axis else shown[other] for other in range(3))
    return volume[part].squeeze(axis)[::-1, ::-1]


def _size_mm(axis: int, shown: tuple[slice, ...], spacing: Sequence[float]) -> tuple[float, float]:
    rows, columns = ((shown[other].stop - shown[other].start) * spacing[other] for other in range(3) if other != axis)
    return rows, columns


def _grey_range(shown: Array) -> tuple[float, float]:
    """Black and white for all planes; white lies above the brightest tissue, so that outlines stand out on it."""
    low, high = np.percentile(shown.astype(np.float32), (0.5, 99.5))
    return float(low), float(low + max(1.2 * (high - low), 1e-6))


def _draw(
    axes: Axes, planes: Sequence[Array], size_mm: tuple[float, float], plane: _Plane, greys: tuple[float, float]
) -> None:
    grey, true, predicted = planes
    rows, columns = size_mm
    axes.imshow(grey, cmap="gray", vmin=greys[0], vmax=greys[1], extent=(0, columns, rows, 0), aspect="equal")
    for mask, colour, dashes in ((true, TRUTH, "solid"), (predicted, PREDICTION, (0, (2.5, 2.5)))):
        if mask.any():
            _outline(axes, mask, size_mm, colour, dashes)
    for text, (x, y) in zip(plane.letters, ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02)), strict=True):
        sides = {0.02: ("left", "bottom"), 0.5: ("center", "center"), 0.98: ("right", "top")}
        axes.text(
            x, y, text, transform=axes.transAxes, color="white", fontsize=7, ha=sides[x][0], va=sides[y][1], alpha=0.85
        )
    axes.plot((0.04 * columns, 0.04 * columns + 20), (0.95 * rows, 0.95 * rows), color="white", linewidth=1.6)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.axis("off")


def _outline(axes: Axes, mask: Array, size_mm: tuple[float, float], colour: str, dashes: object) -> None:
    """Outline at half a voxel outside the outermost voxel centres; a rim of nought closes it at the picture's edge."""
    padded = np.pad(mask.astype(np.float32), 1)
    y, x = ((np.arange(-1, side + 1) + 0.5) * length / side for side, length in zip(mask.shape, size_mm, strict=True))
    axes.contour(x, y, padded, levels=[0.5], colors=[colour], linestyles=[dashes], linewidths=1.5)


def _compact_png(figure: Figure) -> bytes:
    """PNG with a palette of 128 colours, a third of the size of a full one."""
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", facecolor="black")
    with Image.open(raw) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def pick_cases(records: Sequence[Record], method: str, most: int) -> list[tuple[str, Record]]:
    """Which scores to show: the worst, the median and the best Dice of `method` per modality and structure.

    Where that makes more than `most` pictures, per modality alone. Scores with an oracle prompt are only picked where
    the method has no others. Fewer than three scored cases give fewer pictures.
    """
    scored = [r for r in records if r.method == method and r.dice is not None]
    chosen = [r for r in scored if not r.is_oracle] or scored
    picked = _pick(chosen, lambda record: (record.modality, record.structure))
    return picked if len(picked) <= most else _pick(chosen, lambda record: (record.modality,))


def _pick(records: Sequence[Record], group: Callable[[Record], tuple[str, ...]]) -> list[tuple[str, Record]]:
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(group(record), []).append(record)
    picked: list[tuple[str, Record]] = []
    for members in groups.values():
        ordered = sorted(members, key=lambda record: (record.dice or 0.0, record.case))
        places = {"worst": 0, "median": (len(ordered) - 1) // 2, "best": len(ordered) - 1}
        taken: set[int] = set()
        for rank in RANKS if len(ordered) > 2 else ("worst", "best"):
            if places[rank] not in taken:
                picked.append((rank, ordered[places[rank]]))
            taken.add(places[rank])
    return picked
