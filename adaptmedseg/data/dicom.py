"""DICOM series: listing those of a folder, and reading one as a volume on the scanner's grid.

The grid is computed from the positions of the slices (Image Position and Image Orientation, DICOM PS3.3 C.7.6.2), so
that a stack whose slices are shifted against each other, as with a tilted CT gantry, keeps its true, sheared geometry.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import SimpleITK

from adaptmedseg.data.dicom_header import SliceHeader, holds_dicom, slice_headers
from adaptmedseg.data.grid import LPS_TO_RAS, Grid, Volume, checked_grid, checked_image, guarded
from adaptmedseg.errors import UserError

__all__ = [
    "Series",
    "dicom_series",
    "holds_dicom",
    "pick_series",
    "read_dicom",
    "read_modality_tag",
    "read_stack",
    "series_grid",
]

_FEWEST = 3
_NO_SCANS = {"SEG", "RTDOSE", "RTIMAGE", "PR", "KO", "SR", "RTSTRUCT", "RTPLAN"}
_SAME_DIRECTION = 1e-3
_SAME_PIXEL = 1e-3
_SAME_PLACE_MM = 1e-2
_WHOLE_GAPS = 0.1
_MAX_STRAY_IN_GAPS = 0.1
_TILT_DEGREES = 0.1
_CONVERT = "convert it with dcm2niix and give the NIfTI file"


@dataclass(frozen=True, eq=False)
class Series:
    """One series of a folder: its UID, number, description, modality tag ("CT", "MR", ...) and count of slices.

    `localiser` tells survey scans, which are no volumes: fewer than three slices, or said so in the Image Type.
    """

    uid: str
    number: str
    description: str
    modality: str
    slices: int
    localiser: bool
    headers: tuple[SliceHeader, ...] = field(repr=False)

    def __str__(self) -> str:
        count = f"{self.slices} slice{'' if self.slices == 1 else 's'}"
        kind = ", localiser" if self.localiser else ""
        return f"{self.number or self.uid}: '{self.description}', {self.modality or 'no modality'}, {count}{kind}"


def dicom_series(folder: str | Path) -> list[Series]:
    """The image series of a folder and the folders in it, by number; file names and suffixes do not matter.

    Raises:
        UserError: the folder does not exist, holds no DICOM image, or holds a truncated one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds the DICOM files.")
    grouped: dict[str, list[SliceHeader]] = defaultdict(list)
    for header in slice_headers(folder):
        grouped[header.series].append(header)
    if not grouped:
        raise UserError(f"{folder} is a folder without DICOM images; give a volume file or a folder of one series.")
    return sorted((_series(uid, headers) for uid, headers in grouped.items()), key=_order)


def pick_series(folder: str | Path, series: str | None = None) -> Series:
    """The series that is meant.

    Args:
        folder: searched as by `dicom_series`.
        series: number, UID or description; None takes the only one that is a scan (localisers do not count).

    Raises:
        UserError: none or several fit; the sentence lists them all.
    """
    known = dicom_series(folder)
    listed = "; ".join(map(str, known))
    if series is None:
        scans = [one for one in known if not one.localiser and one.modality not in _NO_SCANS]
        if len(scans) == 1:
            return scans[0]
        if not scans:
            raise UserError(f"{folder} holds no DICOM series of at least {_FEWEST} slices ({listed}).")
        raise UserError(f"{folder} holds {len(scans)} DICOM series; choose one with --series {_way(scans)} ({listed}).")
    wanted = series.strip().lower()
    for name in ("uid", "number", "description"):
        fitting = [one for one in known if getattr(one, name).lower() == wanted]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            uids = ", ".join(one.uid for one in fitting)
            raise UserError(f"{folder} holds {len(fitting)} series of {name} '{series}'; choose by UID ({uids}).")
    raise UserError(f"{folder} holds no series '{series}'; choose by number, UID or description ({listed}).")


def _way(series: list[Series]) -> str:
    """How series are told apart on a command line: by number where each has its own."""
    numbers = [one.number for one in series]
    return "NUMBER" if all(numbers) and len(set(numbers)) == len(numbers) else "UID"


def read_dicom(folder: str | Path, series: str | None = None) -> Volume:
    """Read a series as float32, canonical, with rescale slope and intercept applied slice by slice (CT: HU).

    Args:
        folder: the folder of the files; several series may lie in it.
        series: number, UID or description; None takes the only one.

    Raises:
        UserError: the series cannot be told, lacks slices, is unevenly spaced or of mixed orientations, holds several
            images at one position, colour or multi-frame files, or a file is truncated.
    """
    folder = Path(folder)
    return _read_series(folder, pick_series(folder, series))


def read_stack(folder: str | Path) -> tuple[Volume, list[Path]]:
    """Read all slices of a folder as one volume, whatever their series UIDs say, and their files in the order read.

    Anonymised files may each have a series UID of their own. The paths are in the order of the last axis of the
    volume's grid (not of the canonical array).

    Raises:
        UserError: as `read_dicom`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds the DICOM files.")
    headers = slice_headers(folder)
    if not headers:
        raise UserError(f"{folder} is a folder without DICOM images; give a volume file or a folder of one series.")
    series = _series(headers[0].series, headers)
    volume = _read_series(folder, series)
    return volume, [header.path for header in _stack(folder, series)[0]]


def read_modality_tag(folder: str | Path, series: str | None = None) -> str | None:
    """What the series says of its modality: "CT", "MR", ... or None where it does not say. Errors as `pick_series`."""
    return pick_series(folder, series).modality or None


def series_grid(folder: str | Path, series: str | None = None) -> Grid:
    """The grid of a series from its headers alone. Errors as `read_dicom`."""
    return _stack(Path(folder), pick_series(folder, series))[1]


def _series(uid: str, headers: list[SliceHeader]) -> Series:
    first = headers[0]
    slices = sum(header.frames for header in headers)
    survey = slices < _FEWEST or all("LOCALIZER" in header.image_type.upper() for header in headers)
    return Series(uid, first.number, first.description, first.modality, slices, survey, tuple(headers))


def _read_series(folder: Path, chosen: Series) -> Volume:
    ordered, grid, notes = _stack(folder, chosen)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)  # else the first slice's type holds for slices of other slopes
    reader.SetFileNames([str(header.path) for header in ordered])
    array = SimpleITK.GetArrayFromImage(guarded(folder, reader.Execute)).transpose()
    if array.shape != grid.shape:
        raise UserError(f"{folder} was read as {array.shape} where its headers say {grid.shape}; export it again.")
    volume = checked_image(array, grid, folder, notes, chosen.modality or None)
    return replace(volume, series_uid=chosen.uid)


def _order(series: Series) -> tuple[int, str]:
    return (int(series.number) if series.number.lstrip("-").isdigit() else 1 << 31, series.uid)


def _stack(folder: Path, series: Series) -> tuple[list[SliceHeader], Grid, tuple[str, ...]]:
    """The slices in order along the stack's normal, the grid (x: columns, y: rows, z: slices), and notes."""
    name = f"{folder}: series {series}"
    _check_alike(name, series.headers)
    first = series.headers[0]
    assert first.axes is not None
    assert first.pixel_mm is not None
    normal = np.cross(*first.axes)
    ordered = sorted(series.headers, key=lambda header: float(_position(header) @ normal))
    positions = np.stack([_position(header) for header in ordered])
    step = _step(name, ordered, positions, normal)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([*(first.axes * first.pixel_mm[:, None]), step])
    affine[:3, 3] = positions[0]
    grid = checked_grid(folder, (*first.size, len(ordered)), LPS_TO_RAS @ affine)
    return ordered, grid, _tilt_note(step, normal)


def _position(header: SliceHeader) -> np.ndarray:
    assert header.position is not None
    return header.position


def _check_alike(name: str, headers: Sequence[SliceHeader]) -> None:
    """Slices of one volume agree in all but their position."""
    if any(header.frames > 1 for header in headers):
        raise UserError(f"{name} is stored as one multi-frame file; {_CONVERT}.")
    if any(header.samples > 1 for header in headers):
        raise UserError(f"{name} holds colour images, such as screenshots; choose the series of the scan itself.")
    for header in headers:
        if header.position is None or header.axes is None or header.pixel_mm is None:
            raise UserError(f"{name}: {header.path.name} does not state where it lies; export the original series.")
    axes = np.stack([header.axes for header in headers if header.axes is not None])
    lengths = np.linalg.norm(axes, axis=-1)
    if (np.abs(lengths - 1) > 1e-2).any() or (np.abs((axes[:, 0] * axes[:, 1]).sum(-1)) > 1e-2).any():
        raise UserError(f"{name} states image directions that are not at right angles; repair Image Orientation.")
    kinds = _count_distinct(axes.reshape(-1, 6), _SAME_DIRECTION)
    if len(kinds) > 1:
        raise UserError(
            f"{name} mixes {len(kinds)} orientations ({' + '.join(map(str, kinds))} slices); split it by orientation "
            "and give one."
        )
    sizes = Counter(header.size for header in headers)
    if len(sizes) > 1:
        told = ", ".join(f"{count} of {columns} × {rows}" for (columns, rows), count in sizes.items())
        raise UserError(f"{name} mixes slices of {len(sizes)} sizes ({told}); split it by size and give one.")
    pixels = np.stack([header.pixel_mm for header in headers if header.pixel_mm is not None])
    if (pixels <= 0).any() or len(_count_distinct(pixels, _SAME_PIXEL)) > 1:
        told = " and ".join(sorted({f"{column:.3f} × {row:.3f}" for column, row in pixels}))
        raise UserError(f"{name} has unusable or mixed pixel sizes ({told} mm); export the original series.")


def _count_distinct(rows: np.ndarray, tolerance: float) -> list[int]:
    """How many rows are alike, for each distinct row in order of first sight."""
    left, counts = rows, []
    while len(left):
        same = (np.abs(left - left[0]) <= tolerance).all(axis=1)
        counts.append(int(same.sum()))
        left = left[~same]
    return counts


def _step(name: str, ordered: Sequence[SliceHeader], positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The vector from one slice to the next, LPS mm. UserError where there is no single one."""
    if len(positions) == 1:
        thickness = ordered[0].thickness_mm
        if thickness is None or thickness <= 0:
            raise UserError(f"{name} is a single slice without a thickness; give a series of several slices.")
        return normal * thickness
    along = positions @ normal
    gaps = np.diff(along)
    places = 1 + int((gaps > _SAME_PLACE_MM).sum())
    if places < len(positions):
        raise UserError(
            f"{name} holds {len(positions)} images at {places} positions, such as several echoes, phases or b-values; "
            "convert it with dcm2niix, give the NIfTI file and choose with --channel."
        )
    wide = gaps / gaps.min()
    if wide.max() > 1.5 and (np.abs(wide - np.round(wide)) < _WHOLE_GAPS).all():
        at = int(wide.argmax())
        lost = int(np.round(wide).sum()) - len(gaps)
        raise UserError(
            f"{name} lacks {lost} slice{'s' if lost > 1 else ''}: after {ordered[at].path.name} the gap is "
            f"{gaps[at]:.2f} mm where it is {gaps.min():.2f} mm elsewhere; export the whole series again."
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    even = positions[0] + np.arange(len(positions))[:, None] * step
    stray = float(np.linalg.norm(positions - even, axis=1).max())
    if stray > _MAX_STRAY_IN_GAPS * float(step @ normal):
        raise UserError(
            f"{name} is unevenly spaced: gaps run from {gaps.min():.2f} to {gaps.max():.2f} mm and slices lie up to "
            f"{stray:.2f} mm off an even stack; resample it to even gaps and give the NIfTI file."
        )
    return step


def _tilt_note(step: np.ndarray, normal: np.ndarray) -> tuple[str, ...]:
    along = float(step @ normal)
    degrees = float(np.degrees(np.arctan2(np.linalg.norm(step - along * normal), along)))
    if degrees < _TILT_DEGREES:
        return ()
    return (
        f"the slices are tilted by {degrees:.1f} degrees against the stack (gantry tilt); the mask keeps this sheared "
        "grid, which some programs cannot show",
    )
