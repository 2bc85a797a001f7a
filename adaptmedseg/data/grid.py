"""The scanner's grid, canonical volumes, and the checks that every format's reader shares."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError, apply_orientation, inv_ornt_aff, io_orientation, ornt2axcodes
from nibabel.spatialimages import HeaderDataError

from adaptmedseg.errors import UserError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHARED_FIELDS = (
    "qform_code",
    "sform_code",
    *(f"quatern_{axis}" for axis in "bcd"),
    *(f"qoffset_{axis}" for axis in "xyz"),
    *(f"srow_{axis}" for axis in "xyz"),
)
_COSINE_DECIMALS = 4
_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
)
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class NiftiFrame:
    """Where a NIfTI header says its voxels lie, field by field: sform, qform, their codes, voxel sizes and unit.

    Programs differ in which field they trust. A mask that repeats all of them lies on its image in every program.
    """

    fields: dict[str, np.ndarray]
    pixdim: np.ndarray
    unit: str

    @classmethod
    def of(cls, header: nib.Nifti1Header) -> NiftiFrame:
        """The spatial fields of a header, in this machine's byte order."""
        fields = {name: np.array(header[name], header[name].dtype.newbyteorder("=")) for name in _SHARED_FIELDS}
        return cls(fields, np.array(header["pixdim"][:4], np.float64), header.get_xyzt_units()[0])

    def write_to(self, header: nib.Nifti1Header) -> None:
        """Put the same fields into another header."""
        for name, value in self.fields.items():
            header[name] = value
        header["pixdim"][:4] = self.pixdim
        header.set_xyzt_units(self.unit)


@dataclass(frozen=True, eq=False)
class Grid:
    """The scanner's grid as the file has it: `shape` (x, y, z) in voxels, `affine` (4, 4) from voxel to RAS mm.

    `frame` keeps the spatial fields of the NIfTI header that the grid was read from, None for other sources.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    frame: NiftiFrame | None = field(default=None, repr=False)

    @property
    def orientation(self) -> np.ndarray:
        """Target axis and direction of each file axis in RAS+, (3, 2) as in nibabel.

        Axes turned by 45 degrees are equally close to two anatomical axes. Direction cosines are rounded first, so
        that such a grid is ordered alike whether its affine went through float32 or not.

        Raises:
            OrientationError: an axis has no length.
        """
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        cosines = np.eye(4)
        cosines[:3, :3] = np.round(self.affine[:3, :3] / np.where(sizes > 0, sizes, 1), _COSINE_DECIMALS)
        return io_orientation(cosines)

    @property
    def codes(self) -> str:
        """The three orientation letters of the file's axes, for example ``"LPS"``."""
        return "".join(ornt2axcodes(self.orientation))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml; unlike the product of the voxel sizes it is right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def sheared(self) -> bool:
        """Whether the axes are not at right angles, by more than a tenth of a degree."""
        cosines = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(np.abs(cosines.T @ cosines - np.eye(3)).max()) > np.sin(np.radians(0.1))

    def canonical(self) -> Grid:
        """The same voxels with their axes reordered and flipped to RAS+."""
        orientation = self.orientation
        shape = [0, 0, 0]
        for axis, (target, _) in enumerate(orientation.astype(int)):
            shape[target] = self.shape[axis]
        return Grid((shape[0], shape[1], shape[2]), self.affine @ inv_ornt_aff(orientation, self.shape))

    def distance_mm(self, other: Grid) -> float:
        """The largest distance between corresponding corners of two grids of one shape, both taken canonical, in mm."""
        return corner_distance_mm(self.canonical(), other.canonical())


@dataclass(frozen=True, eq=False)
class Volume:
    """A canonical volume: `data` (d, h, w), `spacing` (d, h, w) in mm, and the grid and path it was read from.

    `notes` are sentences on what is doubtful about the file's geometry. Of a DICOM series, `modality_tag` is what it
    says of itself ("CT", "MR", ...) and `series_uid` its identifier; None for other formats.
    """

    data: np.ndarray
    spacing: tuple[float, float, float]
    grid: Grid
    path: Path
    notes: tuple[str, ...] = ()
    modality_tag: str | None = None
    series_uid: str | None = None


def corner_distance_mm(first: Grid, second: Grid) -> float:
    """The largest distance between corners of the same index, axes taken as they are, in mm.

    Raises:
        ValueError: the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"grids differ in shape: {first.shape} and {second.shape}")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in first.shape])).reshape(3, -1).T
    gap = apply_affine(first.affine, corners) - apply_affine(second.affine, corners)
    return float(np.linalg.norm(gap, axis=1).max())


def spacing_dhw(grid: Grid) -> tuple[float, float, float]:
    """Voxel sizes of the canonical array, (d, h, w) in mm."""
    x, y, z = voxel_sizes(grid.canonical().affine)
    return float(z), float(y), float(x)


def checked_grid(path: Path, shape: tuple[int, ...], affine: np.ndarray, frame: NiftiFrame | None = None) -> Grid:
    """The grid of a file. UserError where the shape is not that of a volume or the affine cannot be used."""
    if len(shape) < 3:
        raise UserError(f"{path} is {len(shape)}D; a volume has three axes, so stack the slices into one file first.")
    if min(shape) < 1:
        raise UserError(f"{path} has an empty axis (shape {tuple(shape)}); export it again.")
    matrix = affine[:3, :3]
    sizes = np.linalg.norm(matrix, axis=0)
    usable = np.isfinite(affine).all() and (sizes > 1e-6).all() and abs(np.linalg.det(matrix / sizes)) > 1e-3
    if not usable:
        voxel = np.round(sizes, 4).tolist()
        raise UserError(f"{path} has an unusable affine (voxel sizes {voxel} mm); repair its header.")
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine, frame)
    try:
        orientation = grid.orientation
    except OrientationError:
        orientation = np.full((3, 2), np.nan)
    if np.isnan(orientation).any():
        raise UserError(f"{path} has an affine from which its axes cannot be told apart; repair its header.")
    return grid


def checked_image(
    array: np.ndarray, grid: Grid, path: Path, notes: tuple[str, ...] = (), modality_tag: str | None = None
) -> Volume:
    """An image (x, y, z) in the file's order as a canonical float32 volume.

    Raises:
        UserError: voxels are NaN or infinite, or all are equal.
    """
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        bad = array.size - int(np.isfinite(array).sum())
        raise UserError(
            f"{path} holds {bad} voxels that are NaN or infinite; replace them by the background's value and try again."
        )
    if array.min() == array.max():
        raise UserError(f"{path} is constant: every voxel is {array.flat[0]:g}; check the export and leave it out.")
    return canonical_volume(array, grid, path, notes, modality_tag)


def canonical_volume(
    array: np.ndarray, grid: Grid, path: Path, notes: tuple[str, ...] = (), modality_tag: str | None = None
) -> Volume:
    """Voxels (x, y, z) in the file's order as a canonical volume, dtype kept."""
    canonical = np.ascontiguousarray(apply_orientation(array, grid.orientation).transpose(2, 1, 0))
    return Volume(canonical, spacing_dhw(grid), grid, path, notes, modality_tag)


def guarded(path: Path, read: Callable[[], Result]) -> Result:
    """Run a reader and turn the errors of damaged files into one sentence."""
    try:
        return read()
    except _READ_ERRORS as error:
        if any(words in str(error).lower() for words in ("failed to allocate", "bad_alloc", "bad alloc")):
            raise MemoryError(f"{path} does not fit into memory") from error
        detail = str(error).strip().splitlines()
        reason = f" ({detail[-1].strip()})" if detail else ""
        raise UserError(f"{path} is truncated or damaged{reason}; copy or export it again.") from error
