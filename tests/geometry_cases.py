"""Grids of every kind, volumes written on them by other libraries, and shapes drawn in the world."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

ORIENTATIONS = list(product(permutations(range(3)), product((-1, 1), repeat=3)))  # all 48, half of them left-handed
Orientation = tuple[tuple[int, ...], tuple[int, ...]]
Inside = Callable[[np.ndarray], np.ndarray]
FORMATS = [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"]
MASK_FORMATS = [".nii.gz", ".nii", ".mha", ".nrrd"]
TINY_MM = 1e-3
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_of(
    orientation: Orientation,
    sizes: tuple[float, float, float],
    degrees: tuple[float, float, float],
    shear: float = 0.0,
    origin: tuple[float, float, float] = (-90.5, 40.25, 13.0),
) -> np.ndarray:
    """Voxel to RAS mm: axes permuted, flipped, scaled, slices shifted by `shear` mm per mm, then turned as a whole."""
    matrix = np.zeros((3, 3))
    for axis, (target, sign) in enumerate(zip(*orientation, strict=True)):
        matrix[target, axis] = sign * sizes[axis]
    sheared = np.eye(3)
    sheared[1, 2] = shear
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ sheared @ matrix
    affine[:3, 3] = origin
    return affine


OBLIQUE = affine_of(((1, 2, 0), (-1, 1, -1)), (0.7, 3.0, 1.1), (12.0, -20.0, 31.0))


def scan(shape: tuple[int, ...], dtype: str = "int16") -> np.ndarray:
    """Voxels (x, y, z) that all differ where the dtype allows it."""
    count = int(np.prod(shape))
    return np.random.default_rng(0).permutation(count).reshape(shape).astype(dtype)


def affines(*, shear: bool = True) -> st.SearchStrategy[np.ndarray]:
    """Affines of all orientations: square or oblique (45 degrees included), anisotropic, sheared or not."""
    size = st.floats(0.4, 6.0)
    degree = st.one_of(st.just(0.0), st.just(45.0), st.floats(-50.0, 50.0))
    return st.builds(
        affine_of,
        st.sampled_from(ORIENTATIONS),
        st.tuples(size, size, size),
        st.tuples(degree, degree, degree),
        st.sampled_from([0.0, 0.1, -0.35]) if shear else st.just(0.0),
        st.tuples(*[st.floats(-300.0, 300.0)] * 3),
    )


def shapes(low: int = 1, high: int = 9) -> st.SearchStrategy[tuple[int, int, int]]:
    """Shapes (x, y, z) with axes of one voxel and odd ones among them, of at least two voxels in all."""
    return st.tuples(*[st.integers(low, high)] * 3).filter(lambda shape: np.prod(shape) > 1)


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write (x, y, z) voxels with nibabel or SimpleITK, by suffix."""
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), path)
        return path
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose()))
    lps = LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(sizes.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=path.suffix != ".mhd")
    return path


def opened(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (x, y, z) and affine of a file as nibabel or SimpleITK see it, without the project's own reader."""
    if path.name.endswith((".nii", ".nii.gz")):
        image = nib.load(path)
        return np.asarray(image.dataobj), image.affine
    return opened_by_itk(path)


def opened_by_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same through SimpleITK, whatever the format; the affine is asked of ITK point by point."""
    image = SimpleITK.ReadImage(str(path))
    at = [image.TransformContinuousIndexToPhysicalPoint(index) for index in np.vstack([np.zeros(3), np.eye(3)])]
    affine = np.eye(4)
    affine[:3, 3] = at[0]
    affine[:3, :3] = (np.array(at[1:]) - at[0]).T
    return SimpleITK.GetArrayFromImage(image).transpose(), LPS @ affine


def centres(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """World mm of every voxel's centre, (x, y, z, 3)."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def ball(centre: np.ndarray, radius_mm: float) -> Inside:
    return lambda world: np.linalg.norm(world - centre, axis=-1) <= radius_mm


def box(low: np.ndarray, high: np.ndarray) -> Inside:
    return lambda world: ((world >= low) & (world <= high)).all(axis=-1)
