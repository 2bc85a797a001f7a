"""Reading, canonical order, and writing back on the scanner's grid."""

from __future__ import annotations

import errno
import os
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from geometry_cases import ORIENTATIONS, Orientation, affine_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptmedseg.data import volume
from adaptmedseg.data.volume import Grid, read_grid, read_image, read_labels, to_grid, write_mask
from adaptmedseg.errors import UserError

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def world_of_first(affine: np.ndarray, array: np.ndarray, value: float) -> np.ndarray:
    index = np.argwhere(array == value)[0]
    return nib.affines.apply_affine(affine, index)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_canonical_array_is_indexed_by_superior_anterior_right(tmp_path: Path, orientation: Orientation) -> None:
    array = ramp(3, 4, 5)
    affine = affine_of(orientation, (0.7, 2.0, 4.0), (0.0, 0.0, 0.0))
    image = read_image(save(tmp_path / "a.nii", array, affine))
    step = np.array(image.spacing)
    origin = world_of_first(affine, array, image.data[0, 0, 0])
    for index in product((0, 1, 2), repeat=3):
        world = world_of_first(affine, array, image.data[index])
        np.testing.assert_allclose((world - origin)[::-1], np.array(index) * step, atol=1e-3)
    np.testing.assert_array_equal(to_grid(image.data, image.grid), array)


@SETTINGS
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    sizes=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    degrees=st.tuples(*[st.floats(-35.0, 35.0)] * 3),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    suffix=st.sampled_from([".nii.gz", ".nii", ".mha", ".nrrd"]),
    seed=st.integers(0, 2**16),
)
def test_masks_come_back_on_the_grid_of_their_image(
    tmp_path: Path,
    orientation: Orientation,
    sizes: tuple[float, float, float],
    degrees: tuple[float, float, float],
    shape: tuple[int, int, int],
    suffix: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    affine = affine_of(orientation, sizes, degrees)
    array = rng.normal(size=shape).astype(np.float32)
    array.flat[0] = 10 + array.size  # a constant volume is refused, so a single voxel gets a partner
    if array.size == 1:
        array = np.concatenate([array, array + 1])
    image = read_image(save(tmp_path / "image.nii.gz", array, affine))
    mask = rng.integers(0, 2, image.data.shape).astype(np.uint8)
    write_mask(tmp_path / f"mask{suffix}", mask, image.grid)
    again = read_labels(tmp_path / f"mask{suffix}")
    np.testing.assert_array_equal(again.data, mask)
    assert again.grid.shape == image.grid.shape
    assert again.grid.codes == image.grid.codes
    assert again.grid.distance_mm(image.grid) < 1e-3 * min(sizes)
    np.testing.assert_array_equal(to_grid(image.data, image.grid), array)


def test_nifti_masks_keep_the_affine_in_sform_and_qform(tmp_path: Path) -> None:
    affine = affine_of(((1, 0, 2), (-1, 1, -1)), (0.6, 0.6, 4.0), (10.0, -5.0, 20.0))
    image = read_image(save(tmp_path / "image.nii.gz", ramp(4, 5, 6), affine))
    write_mask(tmp_path / "mask.nii.gz", np.ones(image.data.shape, bool), image.grid)
    header = nib.load(tmp_path / "mask.nii.gz").header
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-4)
    np.testing.assert_allclose(header.get_qform(), affine, atol=1e-4)
    assert header.get_data_dtype() == np.uint8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.nii.gz", "mask.nii.gz"]


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nrrd"])
def test_itk_files_share_the_frame_of_nifti(tmp_path: Path, suffix: str) -> None:
    affine = affine_of(((0, 2, 1), (1, -1, 1)), (0.6, 3.0, 0.7), (8.0, 3.0, -12.0))
    save(tmp_path / "a.nii", ramp(3, 4, 5), affine)
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "a.nii")), str(tmp_path / f"b{suffix}"))
    first, second = read_image(tmp_path / "a.nii"), read_image(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(first.data, second.data)
    np.testing.assert_allclose(first.grid.affine, second.grid.affine, atol=1e-4)
    np.testing.assert_allclose(read_grid(tmp_path / f"b{suffix}").affine, second.grid.affine)


def test_a_4d_image_asks_for_a_channel(tmp_path: Path) -> None:
    path = save(tmp_path / "four.nii.gz", ramp(3, 4, 5, 2))
    with pytest.raises(UserError, match=r"four\.nii\.gz is 4D with 2 channels.*--channel N"):
        read_image(path)
    with pytest.raises(UserError, match="no channel 2"):
        read_image(path, channel=2)
    np.testing.assert_array_equal(to_grid(read_image(path, 1).data, read_grid(path)), ramp(3, 4, 5, 2)[..., 1])


def test_vector_and_4d_itk_images_have_channels(tmp_path: Path) -> None:
    vector = SimpleITK.GetImageFromArray(ramp(3, 4, 5, 2), isVector=True)
    SimpleITK.WriteImage(vector, str(tmp_path / "vector.nrrd"))
    stacked = SimpleITK.JoinSeries(
        [SimpleITK.GetImageFromArray(ramp(3, 4, 5)), SimpleITK.GetImageFromArray(-ramp(3, 4, 5))]
    )
    SimpleITK.WriteImage(stacked, str(tmp_path / "four.mha"))
    for name, expected in (("vector.nrrd", ramp(3, 4, 5, 2)[..., 1]), ("four.mha", -ramp(3, 4, 5))):
        image = read_image(tmp_path / name, channel=1)
        np.testing.assert_array_equal(to_grid(image.data, image.grid).transpose(), expected)


def _broken(tmp_path: Path, kind: str) -> Path:
    """A file with one defect."""
    array = ramp(8, 8, 8)
    path = tmp_path / f"{kind}.nii.gz"
    if kind == "truncated":
        save(path, np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32))
        path.write_bytes(path.read_bytes()[:-3000])
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no image", encoding="utf-8")
    elif kind == "truncated raw":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / "a.mhd"))
        (tmp_path / "a.raw").write_bytes(b"\0" * 100)
        path = tmp_path / "a.mhd"
    elif kind == "no raw":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / "b.mhd"))
        (tmp_path / "b.raw").unlink()
        path = tmp_path / "b.mhd"
    elif kind == "nan":
        array[0, 0, 0] = np.nan
        save(path, array)
    elif kind == "inf":
        array[0, 0, 0] = np.inf
        save(path, array)
    elif kind == "constant":
        save(path, np.full((4, 4, 4), 7, np.int16))
    elif kind == "flat":
        save(path, array[:, :, 0])
    elif kind == "singular":
        image = nib.Nifti1Image(array, np.eye(4))
        image.header["srow_z"] = 0  # nibabel itself writes no such affine
        nib.save(nib.Nifti1Image(array, None, image.header), path)
    elif kind == "complex":
        save(path, array.astype(np.complex64))
    elif kind == "folder":
        path.mkdir()
    elif kind == "suffix":
        path = tmp_path / "a.dcm"
        path.write_bytes(b"x")
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "does not exist"),
        ("truncated", "truncated or damaged"),
        ("empty file", "truncated or damaged"),
        ("text", "truncated or damaged"),
        ("truncated raw", "a.raw is truncated or damaged: 100 bytes of "),
        ("no raw", "names the data file b.raw, which is missing"),
        ("nan", "1 voxels that are NaN or infinite"),
        ("inf", "1 voxels that are NaN or infinite"),
        ("constant", "constant: every voxel is 7"),
        ("flat", "is 2D"),
        ("singular", "unusable affine"),
        ("complex", "colour or complex"),
        ("folder", "is a folder"),
        ("suffix", "not a readable volume"),
    ],
)
def test_bad_images_are_told_in_one_sentence(tmp_path: Path, kind: str, says: str) -> None:
    path = _broken(tmp_path, kind)
    with pytest.raises(UserError, match=says) as caught:
        read_image(path)
    assert str(path.with_suffix("")) in str(caught.value)  # a.raw of a.mhd
    assert "\n" not in str(caught.value)


def test_labels_must_be_whole_numbers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not integers"):
        read_labels(save(tmp_path / "soft.nii.gz", ramp(3, 3, 3) / 2))
    with pytest.raises(UserError, match="not integers"):
        read_labels(save(tmp_path / "nan.nii.gz", np.full((3, 3, 3), np.nan, np.float32)))
    with pytest.raises(UserError, match="negative label -1"):
        read_labels(save(tmp_path / "minus.nii.gz", np.full((3, 3, 3), -1, np.int16)))
    with pytest.raises(UserError, match="2 channels"):
        read_labels(save(tmp_path / "four.nii.gz", ramp(3, 3, 3, 2)))
    whole = read_labels(save(tmp_path / "float.nii.gz", ramp(3, 3, 3)))
    assert whole.data.dtype == np.uint8
    assert whole.data.max() == 26


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, array: np.ndarray, grid: Grid) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(volume, "_save_nifti", full)
    with pytest.raises(UserError, match="disk is full"):
        write_mask(tmp_path / "mask.nii.gz", np.ones((2, 2, 2), np.uint8), Grid((2, 2, 2), np.eye(4)))
    assert list(tmp_path.iterdir()) == []


def test_masks_are_refused_in_other_formats_shapes_and_dtypes(tmp_path: Path) -> None:
    grid = Grid((2, 3, 4), np.eye(4))
    with pytest.raises(UserError, match=r"use \.nii\.gz"):
        write_mask(tmp_path / "mask.png", np.ones((4, 3, 2), np.uint8), grid)
    with pytest.raises(ValueError, match="shape"):
        write_mask(tmp_path / "mask.nii", np.ones((2, 3, 4), np.uint8), grid)
    with pytest.raises(ValueError, match="float32"):
        write_mask(tmp_path / "mask.nii", np.ones((4, 3, 2), np.float32), grid)
