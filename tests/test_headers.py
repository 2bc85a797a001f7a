"""Headers as they come: units, frames that differ or are missing, slopes, byte order, MetaImage and NRRD by hand."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from geometry_cases import (
    MASK_FORMATS,
    OBLIQUE,
    ORIENTATIONS,
    TINY_MM,
    affine_of,
    opened,
    opened_by_itk,
    scan,
    write_volume,
)

from adaptmedseg.data.grid import corner_distance_mm
from adaptmedseg.data.volume import read_grid, read_image, to_grid, write_mask
from adaptmedseg.errors import UserError


def header_of(path: Path) -> nib.Nifti1Header:
    return nib.load(path).header


def nifti(path: Path, array: np.ndarray, affine: np.ndarray, qform: int, sform: int) -> nib.Nifti1Image:
    """A NIfTI image whose header holds the frames that are asked for, and no others."""
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, qform)
    image.set_sform(affine, sform)
    image.header.set_xyzt_units("mm")
    return image


def saved(path: Path, image: nib.Nifti1Image) -> Path:
    """Save with the header's own fields; nibabel writes the affine over them unless it is told of none."""
    nib.save(type(image)(np.asarray(image.dataobj), None, image.header), path)
    return path


def test_where_sform_and_qform_differ_the_sform_counts_and_masks_keep_both(tmp_path: Path) -> None:
    image = nifti(tmp_path / "scan.nii.gz", scan((4, 5, 6)), OBLIQUE, 1, 2)
    other = affine_of(((0, 1, 2), (1, 1, 1)), (0.7, 3.0, 1.1), (0.0, 0.0, 5.0))
    image.set_qform(other, 1)
    path = saved(tmp_path / "scan.nii.gz", image)
    volume = read_image(path)
    np.testing.assert_allclose(volume.grid.affine, OBLIQUE, atol=1e-4)
    assert "sform and qform place the volume up to" in volume.notes[0]
    write_mask(tmp_path / "mask.nii.gz", volume.data > 30, volume.grid)
    source, mask = header_of(path), header_of(tmp_path / "mask.nii.gz")
    for name in ("sform_code", "qform_code"):
        assert int(source[name]) == int(mask[name])
    np.testing.assert_array_equal(source.get_sform(), mask.get_sform())
    np.testing.assert_array_equal(source.get_qform(), mask.get_qform())
    # A viewer that goes by the qform shows both in one place too.
    assert SimpleITK.ReadImage(str(path)).GetOrigin() == SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz")).GetOrigin()


@pytest.mark.parametrize(("qform", "sform"), [(1, 0), (0, 1), (1, 1), (3, 4)])
def test_masks_keep_the_frames_of_their_image(tmp_path: Path, qform: int, sform: int) -> None:
    path = saved(tmp_path / "scan.nii.gz", nifti(tmp_path, scan((4, 5, 6)), OBLIQUE, qform, sform))
    volume = read_image(path)
    assert volume.notes == ()
    np.testing.assert_allclose(volume.grid.affine, OBLIQUE, atol=1e-4)
    write_mask(tmp_path / "mask.nii.gz", volume.data > 30, volume.grid)
    mask = header_of(tmp_path / "mask.nii.gz")
    assert (int(mask["qform_code"]), int(mask["sform_code"])) == (qform, sform)
    np.testing.assert_array_equal(mask.get_best_affine(), header_of(path).get_best_affine())


def test_without_any_frame_the_mask_has_none_either(tmp_path: Path) -> None:
    image = nifti(tmp_path, scan((4, 5, 6)), np.eye(4), 0, 0)
    image.header["pixdim"][1:4] = (1, 2, 3)
    path = saved(tmp_path / "scan.nii.gz", image)
    volume = read_image(path)
    assert volume.grid.codes == "LAS"  # the convention of nibabel and SPM
    assert volume.spacing == (3, 2, 1)
    assert "left and right are a guess" in volume.notes[0]
    write_mask(tmp_path / "mask.nii.gz", volume.data > 30, volume.grid)
    for reader in (opened, opened_by_itk):
        np.testing.assert_array_equal(reader(tmp_path / "mask.nii.gz")[1], reader(path)[1])


@pytest.mark.parametrize(("unit", "scale"), [("meter", 1e3), ("micron", 1e-3), ("mm", 1.0), ("unknown", 1.0)])
def test_units_become_millimetres_and_masks_keep_the_files_unit(tmp_path: Path, unit: str, scale: float) -> None:
    in_unit = np.diag([1 / scale] * 3 + [1]) @ OBLIQUE
    image = nifti(tmp_path, scan((4, 5, 6)), in_unit, 1, 1)
    image.header.set_xyzt_units(unit)
    path = saved(tmp_path / "scan.nii.gz", image)
    volume = read_image(path)
    np.testing.assert_allclose(volume.grid.affine, OBLIQUE, atol=1e-4)
    np.testing.assert_allclose(read_grid(path).affine, volume.grid.affine)
    assert bool(volume.notes) == (scale != 1)
    write_mask(tmp_path / "mask.nii.gz", volume.data > 30, volume.grid)
    write_mask(tmp_path / "mask.nrrd", volume.data > 30, volume.grid)
    np.testing.assert_array_equal(header_of(tmp_path / "mask.nii.gz").get_best_affine(), nib.load(path).affine)
    np.testing.assert_allclose(opened_by_itk(tmp_path / "mask.nii.gz")[1], OBLIQUE, atol=TINY_MM)
    np.testing.assert_allclose(opened(tmp_path / "mask.nrrd")[1], OBLIQUE, atol=TINY_MM)


def test_a_unit_that_no_scan_can_have_is_refused(tmp_path: Path) -> None:
    image = nifti(tmp_path, scan((4, 5, 6)), OBLIQUE, 1, 1)
    image.header.set_xyzt_units("meter")
    with pytest.raises(UserError, match=r"states its unit as meter, .* 3000\.0"):
        read_image(saved(tmp_path / "scan.nii.gz", image))
    image.header["xyzt_units"] = 5
    with pytest.raises(UserError, match="unit of length that NIfTI does not know"):
        read_image(saved(tmp_path / "odd.nii.gz", image))


def test_slopes_byte_order_wide_integers_extensions_and_single_volumes(tmp_path: Path) -> None:
    array = scan((4, 5, 6))
    scaled = nib.Nifti1Image(array, OBLIQUE)
    scaled.header.set_slope_inter(0.5, -1024)
    nib.save(scaled, tmp_path / "plain.nii")
    raw = bytearray((tmp_path / "plain.nii").read_bytes())
    raw[112:120] = np.array([0.5, -1024], "<f4").tobytes()  # scl_slope and scl_inter; nibabel rescales when it saves
    (tmp_path / "scaled.nii").write_bytes(raw)
    stored = np.asarray(nib.load(tmp_path / "plain.nii").dataobj.get_unscaled())
    big = nib.Nifti1Image(array.astype(">i2"), OBLIQUE, nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "big.nii")
    nib.save(nib.Nifti1Image(array.astype(np.int64), OBLIQUE, dtype=np.int64), tmp_path / "wide.nii.gz")
    nib.save(nib.Nifti2Image(array, OBLIQUE), tmp_path / "two.nii.gz")
    nib.save(nib.Nifti1Image(array[..., None], OBLIQUE), tmp_path / "four.nii.gz")
    nib.save(nib.Nifti1Image(array[..., None, None], OBLIQUE), tmp_path / "five.nii.gz")
    extended = nib.Nifti1Image(array, OBLIQUE)
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"scanned on a Monday" * 100))
    nib.save(extended, tmp_path / "extended.nii.gz")
    nan_slope = bytearray(gzip.decompress((tmp_path / "extended.nii.gz").read_bytes()))
    nan_slope[112:120] = np.array([np.nan, np.nan], "<f4").tobytes()
    (tmp_path / "unscaled.nii").write_bytes(nan_slope)
    expected = {"scaled.nii": stored * 0.5 - 1024}
    for name in (
        "big.nii",
        "wide.nii.gz",
        "two.nii.gz",
        "four.nii.gz",
        "five.nii.gz",
        "extended.nii.gz",
        "unscaled.nii",
    ):
        expected[name] = array
    for name, values in expected.items():
        image = read_image(tmp_path / name)
        np.testing.assert_allclose(to_grid(image.data, image.grid), values, err_msg=name)
        np.testing.assert_allclose(image.grid.affine, OBLIQUE, atol=1e-4)
        write_mask(tmp_path / "mask.nii.gz", image.data > image.data.mean(), image.grid)
        mask, affine = opened(tmp_path / "mask.nii.gz")
        np.testing.assert_array_equal(mask > 0, values > values.mean(), err_msg=name)
        np.testing.assert_allclose(affine, OBLIQUE, atol=1e-4)


META = "ObjectType = Image\nNDims = {rank}\n{more}DimSize = {size}\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"


def meta(path: Path, more: str, rank: int = 3) -> Path:
    size = (2, 3, 4)[:rank]
    text = META.format(rank=rank, more=more, size=" ".join(map(str, size)))
    path.write_bytes(text.encode() + bytes(range(int(np.prod(size)))))
    return path


def test_metaimage_headers_written_by_hand(tmp_path: Path) -> None:
    assert read_image(meta(tmp_path / "a.mha", "ElementSize = 2 3 4\n")).spacing == (4, 3, 2)
    assert read_image(meta(tmp_path / "b.mha", "ElementSpacing = 1 2 3\nElementSize = 2 3 4\n")).spacing == (3, 2, 1)
    with pytest.raises(UserError, match="is 2D"):
        read_image(meta(tmp_path / "c.mha", "", rank=2))
    # The matrix's rows are the axes' directions: not of unit length and not at right angles here.
    skewed = "TransformMatrix = 2 0 0 0 1 0 0 0.3 1\nOffset = 10 20 30\nElementSpacing = 1 1 3\n"
    image = read_image(meta(tmp_path / "d.mha", skewed))
    lps = np.array([[2, 0, 0, 10], [0, 1, 0.9, 20], [0, 0, 3, 30], [0, 0, 0, 1]])
    np.testing.assert_allclose(image.grid.affine, np.diag([-1, -1, 1, 1]) @ lps)
    assert image.grid.voxel_ml == pytest.approx(0.006)
    for suffix in MASK_FORMATS:
        write_mask(tmp_path / f"mask{suffix}", image.data > 11, image.grid)
        mask, affine = opened(tmp_path / f"mask{suffix}")
        np.testing.assert_allclose(affine, image.grid.affine, atol=1e-5)
        np.testing.assert_array_equal(mask, to_grid(image.data, image.grid) > 11)


@pytest.mark.parametrize(
    ("space", "sign"),
    [
        ("right-anterior-superior", (1, 1, 1)),
        ("left-posterior-superior", (-1, -1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
def test_nrrd_files_say_in_which_space_they_are(tmp_path: Path, space: str, sign: tuple[int, ...]) -> None:
    header = (
        f"NRRD0004\ntype: uchar\ndimension: 3\nspace: {space}\nsizes: 2 3 4\n"
        "space directions: (2,0,0) (0,1.5,0.5) (0,-1,3)\nspace origin: (5,6,7)\nencoding: raw\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(range(24)))
    affine = np.diag([*sign, 1]) @ np.array([[2, 0, 0, 5], [0, 1.5, -1, 6], [0, 0.5, 3, 7], [0, 0, 0, 1]])
    np.testing.assert_allclose(read_image(tmp_path / "a.nrrd").grid.affine, affine, atol=1e-6)


def test_a_sheared_mask_is_never_shown_in_the_wrong_place(tmp_path: Path) -> None:
    affine = affine_of(ORIENTATIONS[0], (1.0, 1.0, 3.0), (0.0, 0.0, 0.0), shear=0.3)
    image = read_image(write_volume(tmp_path / "scan.mha", scan((4, 5, 6)), affine))
    assert image.grid.sheared
    write_mask(tmp_path / "mask.nii.gz", image.data > 30, image.grid)
    assert corner_distance_mm(read_grid(tmp_path / "mask.nii.gz"), image.grid) < TINY_MM
    # ITK cannot hold a shear in NIfTI: it refuses the file rather than turning it, as it would with a qform.
    with pytest.raises(RuntimeError, match="orthonormal"):
        SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz"))
