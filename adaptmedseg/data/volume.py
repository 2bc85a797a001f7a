"""Reading and writing volumes: one canonical frame in memory, the scanner's grid on disk.

In memory every volume is *canonical*: array axes ``(d, h, w)`` are the RAS+ axes ``(z, y, x)``, so that the index grows
to Superior along d, to Anterior along h and to Right along w. Reading reorders and flips axes and never resamples, so
`to_grid` undoes it exactly. Affines follow nibabel: voxel ``(x, y, z)`` of the file to millimetres in RAS.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np
import SimpleITK
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError, apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from adaptmedseg.errors import UserError

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".mhd", ".mha", ".nrrd")
SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES
Result = TypeVar("Result")
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
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True, eq=False)
class Grid:
    """The scanner's grid as the file has it: `shape` (x, y, z) in voxels, `affine` (4, 4) from voxel to RAS mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def codes(self) -> str:
        """The three orientation letters of the file's axes, for example ``"LPS"``."""
        return "".join(nib.aff2axcodes(self.affine))

    def canonical(self) -> Grid:
        """The same voxels with their axes reordered and flipped to RAS+."""
        orientation = io_orientation(self.affine)
        shape = [0, 0, 0]
        for axis, (target, _) in enumerate(orientation.astype(int)):
            shape[target] = self.shape[axis]
        return Grid((shape[0], shape[1], shape[2]), self.affine @ inv_ornt_aff(orientation, self.shape))

    def distance_mm(self, other: Grid) -> float:
        """The largest distance between corresponding corners of two grids of one shape, both taken canonical, in mm."""
        first, second = self.canonical(), other.canonical()
        if first.shape != second.shape:
            raise ValueError(f"grids differ in shape: {first.shape} and {second.shape}")
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in first.shape])).reshape(3, -1).T
        gap = apply_affine(first.affine, corners) - apply_affine(second.affine, corners)
        return float(np.linalg.norm(gap, axis=1).max())


@dataclass(frozen=True, eq=False)
class Volume:
    """A canonical volume: `data` (d, h, w), `spacing` (d, h, w) in mm, and the grid and path it was read from."""

    data: np.ndarray
    spacing: tuple[float, float, float]
    grid: Grid
    path: Path


def volume_suffix(path: Path) -> str | None:
    """The readable suffix that `path` ends with (``.nii.gz`` counts as one), or None."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def volume_stem(path: Path) -> str:
    """The file's name without its volume suffix: ``case_1.nii.gz`` gives ``case_1``."""
    suffix = volume_suffix(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def spacing_dhw(grid: Grid) -> tuple[float, float, float]:
    """Voxel sizes of the canonical array, (d, h, w) in mm."""
    x, y, z = voxel_sizes(grid.canonical().affine)
    return float(z), float(y), float(x)


def read_grid(path: str | Path) -> Grid:
    """The grid of a file from its header alone, without reading voxels.

    Raises:
        UserError: the file is missing, of another format, unreadable, not 3D, or has an unusable affine.
    """
    path = _existing_volume(path)
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        image = _guarded(path, lambda: nib.load(path))
        shape, affine = image.shape, np.asarray(image.affine, dtype=np.float64)
    else:
        shape, affine = _itk_header(path)
    return _checked_grid(path, shape, affine)


def read_image(path: str | Path, channel: int | None = None) -> Volume:
    """Read an image as float32, canonical.

    Args:
        path: NIfTI (.nii, .nii.gz), MetaImage (.mhd, .mha) or NRRD (.nrrd).
        channel: which volume of a 4D file, counted from 0; None for a 3D file.

    Raises:
        UserError: the file is missing, truncated or of another format; it is 4D and no channel is chosen, or the
            channel does not exist; voxels are NaN or infinite; all voxels are equal; the affine is unusable.
    """
    path = _existing_volume(path)
    array, grid = _load(path)
    array = _pick_channel(path, array, channel).astype(np.float32)
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise UserError(
            f"{path} holds {bad} voxels that are NaN or infinite; replace them by the background's value and try again."
        )
    if array.min() == array.max():
        raise UserError(f"{path} is constant: every voxel is {array.flat[0]:g}; check the export and leave it out.")
    return _canonical_volume(array, grid, path)


def read_labels(path: str | Path) -> Volume:
    """Read an integer label map, canonical, in the smallest unsigned dtype that holds its values.

    Raises:
        UserError: as `read_image`, and for values that are negative or not integers (a probability map, for example).
    """
    path = _existing_volume(path)
    array, grid = _load(path)
    if array.ndim == 4:
        if array.shape[3] != 1:
            raise UserError(
                f"{path} holds {array.shape[3]} channels where a label map has one; save one integer map per case."
            )
        array = array[..., 0]
    if not np.issubdtype(array.dtype, np.integer):
        array = _as_integers(path, array)
    if array.size and array.min() < 0:
        raise UserError(f"{path} holds the negative label {array.min()}; label values must be 0 or more.")
    return _canonical_volume(array.astype(np.min_scalar_type(int(array.max()))), grid, path)


def to_grid(array_dhw: np.ndarray, grid: Grid) -> np.ndarray:
    """Put a canonical array (d, h, w) back into the file's axis order and direction, (x, y, z).

    Exact inverse of what reading does; values are untouched.

    Raises:
        ValueError: the array's shape is not the canonical shape of `grid`.
    """
    expected = grid.canonical().shape[::-1]
    if tuple(array_dhw.shape) != expected:
        raise ValueError(f"array has shape {tuple(array_dhw.shape)}, the grid asks for {expected} (d, h, w)")
    back = ornt_transform(_CANONICAL, io_orientation(grid.affine))
    return np.ascontiguousarray(apply_orientation(array_dhw.transpose(2, 1, 0), back))


def write_mask(path: str | Path, mask_dhw: np.ndarray, grid: Grid) -> None:
    """Write a canonical mask on the scanner's grid: same shape, affine and orientation letters as the source image.

    The file appears complete or not at all, and is read again and compared before it gets its name.

    Args:
        path: ends in .nii.gz, .nii, .mha or .nrrd.
        mask_dhw: (d, h, w), bool, uint8 or uint16.
        grid: the grid of the image that the mask belongs to.

    Raises:
        UserError: the suffix cannot be written, the disk is full, or the format cannot hold this grid.
    """
    path = Path(path)
    suffix = volume_suffix(path)
    if suffix is None or suffix == ".mhd":
        raise UserError(f"{path} has no format that masks are written in; use .nii.gz, .nii, .mha or .nrrd.")
    if mask_dhw.dtype == np.bool_:
        mask_dhw = mask_dhw.astype(np.uint8)
    if mask_dhw.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a mask is bool, uint8 or uint16, not {mask_dhw.dtype}")
    array = to_grid(mask_dhw, grid)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (_save_nifti if suffix in NIFTI_SUFFIXES else _save_itk)(partial, array, grid)
        _verify(partial, path, array, grid)
        os.replace(partial, path)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _write_error(path: Path, error: OSError) -> UserError:
    if error.errno == errno.ENOSPC:
        return UserError(f"{path} could not be written because the disk is full; free some space and run again.")
    return UserError(f"{path} could not be written ({error.strerror or error}); check the folder and its permissions.")


def _existing_volume(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a volume; convert DICOM series to NIfTI first (dcm2niix does it).")
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path.")
    if volume_suffix(path) is None:
        raise UserError(f"{path} is not a readable volume; the formats are {', '.join(SUFFIXES)}.")
    return path


def _guarded(path: Path, read: Callable[[], Result]) -> Result:
    """Run a reader and turn the errors of damaged files into one sentence."""
    try:
        return read()
    except _READ_ERRORS as error:
        detail = str(error).strip().splitlines()
        reason = f" ({detail[-1].strip()})" if detail else ""
        raise UserError(f"{path} is truncated or damaged{reason}; copy or export it again.") from error


def _load(path: Path) -> tuple[np.ndarray, Grid]:
    """Voxels as (x, y, z) or (x, y, z, channel) in the file's order, and the grid."""
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        image = _guarded(path, lambda: nib.load(path))
        grid = _checked_grid(path, image.shape, np.asarray(image.affine, dtype=np.float64))
        array = _guarded(path, lambda: np.asanyarray(image.dataobj))
    else:
        grid = _checked_grid(path, *_itk_header(path))
        image = _guarded(path, lambda: SimpleITK.ReadImage(str(path)))
        array = _itk_array(image)
    if array.dtype.fields is not None or np.iscomplexobj(array):
        raise UserError(f"{path} holds colour or complex voxels ({array.dtype}); export it as a plain scalar volume.")
    if array.ndim > 4:
        array = array.reshape(*array.shape[:3], -1)
    return array, grid


def _itk_header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape (x, y, z, ...) and RAS affine of an ITK file; ITK's own frame is LPS."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    _guarded(path, reader.ReadImageInformation)
    shape, dims = tuple(reader.GetSize()), reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(dims, dims)
    rank = min(dims, 3)
    affine = np.eye(4)
    affine[:rank, :rank] = direction[:rank, :rank] * np.array(reader.GetSpacing())[:rank]
    affine[:rank, 3] = reader.GetOrigin()[:rank]
    return shape, _LPS_TO_RAS @ affine


def _itk_array(image: SimpleITK.Image) -> np.ndarray:
    """(x, y, z) or (x, y, z, channel), whether the channels are a fourth axis or vector components."""
    array = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        return array.transpose(2, 1, 0, 3) if array.ndim == 4 else array
    return array.transpose()


def _checked_grid(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> Grid:
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
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    try:
        orientation = io_orientation(affine)
    except OrientationError:
        orientation = np.full((3, 2), np.nan)
    if np.isnan(orientation).any():
        raise UserError(f"{path} has an affine from which its axes cannot be told apart; repair its header.")
    return grid


def _pick_channel(path: Path, array: np.ndarray, channel: int | None) -> np.ndarray:
    count = array.shape[3] if array.ndim == 4 else 1
    if channel is None and count > 1:
        raise UserError(f"{path} is 4D with {count} channels; choose one with --channel N, N from 0 to {count - 1}.")
    if channel is not None and not 0 <= channel < count:
        raise UserError(f"{path} has no channel {channel}; it holds {count}, counted from 0.")
    return array[..., channel or 0] if array.ndim == 4 else array


def _as_integers(path: Path, array: np.ndarray) -> np.ndarray:
    rounded = np.round(array)
    off = ~(np.abs(array - rounded) < 1e-3)  # written so that NaN counts as off
    if off.any():
        raise UserError(
            f"{path} is no label map: {int(off.sum())} voxels are not integers (for example {array[off][0]:g}); "
            "save hard labels, resampled by nearest neighbour."
        )
    return rounded.astype(np.int64)


def _canonical_volume(array: np.ndarray, grid: Grid, path: Path) -> Volume:
    canonical = apply_orientation(array, io_orientation(grid.affine))
    return Volume(np.ascontiguousarray(canonical.transpose(2, 1, 0)), spacing_dhw(grid), grid, path)


def _save_nifti(path: Path, array: np.ndarray, grid: Grid) -> None:
    image = nib.Nifti1Image(array, grid.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1, strip_shears=True)  # a qform is a rotation; the sform keeps any shear
    nib.save(image, path)


def _save_itk(path: Path, array: np.ndarray, grid: Grid) -> None:
    affine = _LPS_TO_RAS @ grid.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose()))
    try:
        image.SetSpacing(sizes.tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection((affine[:3, :3] / sizes).flatten().tolist())
        SimpleITK.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:  # ITK has no error codes, so a full disk is told by the file system
        stat = os.statvfs(path.parent) if hasattr(os, "statvfs") else None
        code = errno.ENOSPC if stat and stat.f_bavail * stat.f_frsize < array.nbytes else errno.EIO
        raise OSError(code, os.strerror(code)) from error


def _verify(partial: Path, path: Path, array: np.ndarray, grid: Grid) -> None:
    """Read what was written and compare it, so that a wrong grid never reaches the user."""
    written, found = _load(partial)
    tolerance = 1e-3 * float(voxel_sizes(grid.affine).min())
    if found.shape != grid.shape or not np.array_equal(written, array):
        raise UserError(f"{path} came back different after writing; check the disk and run again.")
    if found.codes != grid.codes or found.distance_mm(grid) > tolerance:
        raise UserError(f"{path} cannot hold this oblique grid in that format; write .nii.gz instead.")
