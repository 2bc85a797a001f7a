"""DICOM series as input: told apart, put in order, in HU, and on the grid that the slices' positions state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from geometry_cases import LPS, ORIENTATIONS, affine_of, affines, ball, centres, opened, shapes
from hypothesis import HealthCheck, given, settings

from adaptmedseg.data.dicom import dicom_series, holds_dicom, pick_series, read_dicom, read_modality_tag
from adaptmedseg.data.volume import read_grid, read_image, read_labels, to_grid, volume_stem, write_mask
from adaptmedseg.errors import UserError

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
STRUCTURE_SET = b"1.2.840.10008.5.1.4.1.1.481.3\0"
UID = "1.2.826.0.1.3680043.10.999."
SHAPE = (7, 6, 5)
PLAIN = affine_of(((0, 1, 2), (-1, -1, 1)), (0.7, 1.3, 3.0), (0.0, 0.0, 0.0))  # axial as most scanners store it
OBLIQUE = affine_of(((1, 2, 0), (-1, -1, 1)), (0.7, 1.3, 3.0), (12.0, -20.0, 31.0))
Tags = Mapping[str, str]


def scan(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape).astype(np.int16)


def right_handed(affine: np.ndarray) -> np.ndarray:
    """The affine with its slices the other way round where needed: DICOM slices are sorted along rows × columns."""
    turned = affine.copy()
    if np.linalg.det(affine[:3, :3]) < 0:
        turned[:3, 2] *= -1
    return turned


def decimals(*values: float) -> str:
    return "\\".join(f"{value:.10g}"[:16] for value in values)


def write_slices(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    *,
    series: int = 1,
    names: list[str] | None = None,
    skip: tuple[int, ...] = (),
    tags: Tags | None = None,
    single: Mapping[int, Tags] | None = None,
) -> list[Path]:
    """Write (x, y, z) values as one DICOM file a slice; the affine is to RAS mm, `single` are tags of single slices."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    cosines = lps[:3, :2] / sizes[:2]
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    paths = []
    for k in range(array.shape[2]):
        image = SimpleITK.GetImageFromArray(
            np.ascontiguousarray(array[:, :, k].swapaxes(0, 1)), isVector=array.ndim == 4
        )
        image.SetSpacing([float(sizes[0]), float(sizes[1])])
        position = lps[:3, 2] * k + lps[:3, 3]
        own = {
            "0008|0016": MR,
            "0008|0018": f"{UID}{series}.{k + 1}",
            "0008|0060": "MR",
            "0008|103e": f"t2 series {series}",
            "0018|0050": decimals(sizes[2]),
            "0020|000d": f"{UID}0",
            "0020|000e": f"{UID}{series}",
            "0020|0011": str(series),
            "0020|0013": str(k + 1),
            "0020|0032": decimals(*position),
            "0020|0037": decimals(*cosines.T.ravel()),
            **(tags or {}),
            **(single or {}).get(k, {}),
        }
        for tag, value in own.items():
            image.SetMetaData(tag, value)
        paths.append(folder / (names[k] if names else f"slice{k}.dcm"))
        if k not in skip:
            # SimpleITK picks the format by name, so that names without a suffix are given afterwards.
            writer.SetFileName(str(folder / "new.dcm"))
            writer.Execute(image)
            (folder / "new.dcm").rename(paths[-1])
    return paths


def patch(path: Path, tag: str, old: str, new: str) -> None:
    """Put a value of the same length in a tag's place, which ITK itself would not write."""
    start = b"".join(int(part, 16).to_bytes(2, "little") for part in tag.split("|"))
    before, after = (text.encode() + b" " * (len(text) % 2) for text in (old, new))
    assert len(before) == len(after)
    start += len(before).to_bytes(4, "little")
    content = path.read_bytes()
    assert start + before in content
    path.write_bytes(content.replace(start + before, start + after))


@pytest.mark.parametrize("affine", [PLAIN, OBLIQUE], ids=["axial", "oblique"])
def test_a_shuffled_series_is_one_volume_in_the_world(tmp_path: Path, affine: np.ndarray) -> None:
    names = ["IM3", "IM0.dcm", "x.ima", "0007", "b.DCM"]
    write_slices(tmp_path / "series", scan(), affine, names=names)
    (tmp_path / "series" / "notes.txt").write_text("no image", encoding="utf-8")
    (tmp_path / "series" / ".hidden").write_bytes(b"\0" * 128 + b"DICM")
    image = read_image(tmp_path / "series")
    np.testing.assert_array_equal(to_grid(image.data, image.grid), scan())
    np.testing.assert_allclose(image.grid.affine, affine, atol=1e-4)
    np.testing.assert_allclose(read_grid(tmp_path / "series").affine, image.grid.affine)
    assert (image.modality_tag, image.notes, image.data.dtype) == ("MR", (), np.float32)
    assert read_modality_tag(tmp_path / "series") == "MR"
    assert volume_stem(tmp_path / "series") == "series"


def test_the_grid_is_that_of_simpleitk(tmp_path: Path) -> None:
    write_slices(tmp_path, scan(), OBLIQUE, names=list("dbace"))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    expected = reader.Execute()
    image = read_image(tmp_path)
    np.testing.assert_array_equal(to_grid(image.data, image.grid), SimpleITK.GetArrayFromImage(expected).transpose())
    for index in ((0, 0, 0), (6, 0, 0), (0, 5, 0), (6, 5, 4)):
        world = (LPS @ image.grid.affine @ [*index, 1])[:3]
        np.testing.assert_allclose(world, expected.TransformIndexToPhysicalPoint(index), atol=1e-3)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(affine=affines(shear=False).map(right_handed), shape=shapes(3, 7))
def test_masks_of_a_series_lie_where_they_were_drawn(
    tmp_path: Path, affine: np.ndarray, shape: tuple[int, int, int]
) -> None:
    folder = tmp_path / "series"
    for old in folder.glob("*"):
        old.unlink()
    write_slices(folder, scan(shape), affine)
    image = read_image(folder)
    np.testing.assert_array_equal(to_grid(image.data, image.grid), scan(shape))
    centre = affine[:3, :3] @ (np.array(shape) // 2) + affine[:3, 3]
    inside = ball(centre, 1.2 * float(np.linalg.norm(affine[:3, :3], axis=0).max()))
    canonical = image.grid.canonical()
    write_mask(
        tmp_path / "mask.nii.gz", inside(centres(canonical.shape, canonical.affine)).transpose(2, 1, 0), image.grid
    )
    mask, found = opened(tmp_path / "mask.nii.gz")
    assert mask.shape == shape
    half = np.linalg.norm(affine[:3, :3], axis=0).min() / 2
    got, expected = centres(shape, found)[mask > 0], centres(shape, affine)[inside(centres(shape, affine))]
    assert np.linalg.norm(got.mean(axis=0) - expected.mean(axis=0)) < half
    assert abs(len(got) - len(expected)) <= 2
    np.testing.assert_allclose(found, affine, atol=1e-3)
    header = nib.load(tmp_path / "mask.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)


def test_ct_is_in_hounsfield_units_whatever_each_slices_slope(tmp_path: Path) -> None:
    tags = {"0008|0016": CT, "0008|0060": "CT", "0028|1052": "-1024", "0028|1053": "1"}
    paths = write_slices(tmp_path, scan(), PLAIN, tags=tags)
    expected = scan().astype(np.float64)
    # The third slice's slope becomes a half: its stored values, HU + 1024, count half.
    patch(paths[2], "0028|1053", "1", ".5")
    expected[:, :, 2] = (expected[:, :, 2] + 1024) / 2 - 1024
    image = read_image(tmp_path)
    np.testing.assert_allclose(to_grid(image.data, image.grid), expected)
    assert image.modality_tag == "CT"


def test_several_series_in_a_folder_are_listed_and_chosen(tmp_path: Path) -> None:
    write_slices(tmp_path / "a", scan(), PLAIN, series=2)
    write_slices(tmp_path / "b", scan() + 1, OBLIQUE, series=11, tags={"0008|0060": "CT"})
    write_slices(tmp_path / "c", scan()[..., :2], PLAIN, series=1)
    survey = {"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER", "0008|103e": "survey"}
    write_slices(tmp_path / "d", scan(), PLAIN, series=3, tags=survey)
    found = dicom_series(tmp_path)
    assert [(one.number, one.slices, one.localiser) for one in found] == [
        *[("1", 2, True), ("2", 5, False), ("3", 5, True), ("11", 5, False)]
    ]
    with pytest.raises(UserError, match=r"2 DICOM series; choose one with --series NUMBER \(1: 't2 series 1', MR, 2"):
        read_image(tmp_path)
    for name in ("11", f"{UID}11", "T2 Series 11"):
        image = read_image(tmp_path, series=name)
        np.testing.assert_array_equal(to_grid(image.data, image.grid), scan() + 1)
        assert image.modality_tag == "CT"
    with pytest.raises(UserError, match=r"holds no series '7'; choose by number, UID or description \(1: "):
        read_dicom(tmp_path, "7")
    # A localiser beside one scan does not make a choice necessary, and can be asked for.
    for path in (tmp_path / "b").iterdir():
        path.unlink()
    assert pick_series(tmp_path).number == "2"
    assert read_dicom(tmp_path, "1").data.shape == (2, 6, 7)


def test_series_with_one_number_are_chosen_by_uid(tmp_path: Path) -> None:
    for series in (1, 2):
        write_slices(tmp_path / str(series), scan(), PLAIN, series=series, tags={"0020|0011": "5"})
    with pytest.raises(UserError, match=rf"2 series of number '5'; choose by UID \({UID}1, {UID}2\)"):
        read_dicom(tmp_path, "5")


def test_only_localisers_is_no_scan(tmp_path: Path) -> None:
    patch(write_slices(tmp_path, scan()[..., :1], PLAIN)[0], "0018|0088", "1", "3")
    with pytest.raises(UserError, match=r"no DICOM series of at least 3 slices \(1: 't2 series 1', MR, 1 slice, local"):
        read_image(tmp_path)
    image = read_image(tmp_path, series="1")  # asked for by name, its thickness tells the third axis
    np.testing.assert_allclose(image.grid.affine, PLAIN, atol=1e-4)


@pytest.mark.parametrize(
    ("skip", "says"),
    [
        ((2,), r"lacks 1 slice: after slice1\.dcm the gap is 6\.00 mm where it is 3\.00 mm elsewhere"),
        ((1, 2, 5), r"lacks 3 slices: after slice0\.dcm the gap is 9\.00 mm"),
    ],
)
def test_missing_slices_are_counted(tmp_path: Path, skip: tuple[int, ...], says: str) -> None:
    write_slices(tmp_path, scan((7, 6, 9)), OBLIQUE, skip=skip)
    with pytest.raises(UserError, match=says):
        read_image(tmp_path)


TURNED = {"0020|0037": "1\\0\\0\\0\\0\\-1"}
SINGLE_TAGS: dict[str, dict[int, Tags]] = {
    "uneven": {3: {"0020|0032": decimals(*(LPS @ PLAIN @ [0, 0, 3.4, 1])[:3])}},
    "sideways": {3: {"0020|0032": decimals(*(LPS @ PLAIN @ [2, 0, 3, 1])[:3])}},
    "orientations": {1: TURNED, 2: TURNED},
}


def _spoil(folder: Path, paths: list[Path], kind: str) -> None:
    if kind == "pixels":
        patch(paths[2], "0028|0030", "1.3\\.7", "1.3\\.9")
    elif kind == "nowhere":
        patch(paths[1], "0020|0032", "90.5\\-40.25\\16", "nowhere\\-2.2\\1")
    elif kind == "skewed":
        for path in paths:
            patch(path, "0020|0037", "1\\0\\0\\0\\1\\0", "1\\0\\0\\.5\\1\\0")
    elif kind == "echoes":
        write_slices(folder / "echo", scan(), PLAIN, single={k: {"0008|0018": f"{UID}77.{k}"} for k in range(5)})
    elif kind == "sizes":
        write_slices(folder / "more", scan((9, 9, 1)), PLAIN, tags={"0008|0018": f"{UID}78"})
    elif kind == "truncated":
        paths[2].write_bytes(paths[2].read_bytes()[:-40])
    elif kind == "header alone":
        paths[4].write_bytes(paths[4].read_bytes()[:400])
    elif kind == "no preamble":
        (folder / "z.dcm").write_bytes(b"this is text")
    elif kind == "colour":
        for path in paths:
            path.unlink()
        write_slices(folder, np.stack([scan().astype(np.uint8)] * 3, axis=-1), PLAIN)
    elif kind == "multi-frame":
        for path in paths:
            path.unlink()
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(scan().astype(np.uint16)), str(folder / "all.dcm"))
    elif kind == "empty":
        for path in paths:
            path.unlink()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("uneven", r"unevenly spaced: gaps run from 1\.80 to 4\.20 mm and slices lie up to 1\.20 mm off"),
        ("sideways", r"slices lie up to 1\.40 mm off an even stack"),
        ("echoes", r"holds 10 images at 5 positions, such as several echoes"),
        ("orientations", r"mixes 2 orientations \(3 \+ 2 slices\)"),
        ("sizes", r"mixes slices of 2 sizes \(5 of 7 × 6, 1 of 9 × 9\)"),
        ("pixels", r"mixed pixel sizes \(0\.700 × 1\.300 and 0\.900 × 1\.300 mm\)"),
        ("nowhere", r"slice1\.dcm does not state where it lies"),
        ("skewed", "not at right angles"),
        ("truncated", r"slice2\.dcm is truncated or damaged DICOM"),
        ("header alone", r"slice4\.dcm is truncated or damaged DICOM"),
        ("no preamble", r"z\.dcm is truncated or damaged DICOM"),
        ("colour", "holds colour images"),
        ("multi-frame", "multi-frame"),
        ("empty", "folder without DICOM images"),
    ],
)
def test_bad_series_are_told_in_one_sentence(tmp_path: Path, kind: str, says: str) -> None:
    _spoil(tmp_path, write_slices(tmp_path, scan(), PLAIN, single=SINGLE_TAGS.get(kind)), kind)
    with pytest.raises(UserError, match=says) as caught:
        read_image(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_dicom_files_and_copies_do_not_disturb(tmp_path: Path) -> None:
    paths = write_slices(tmp_path, scan(), PLAIN)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "again.dcm").write_bytes(paths[1].read_bytes())
    meta = b"\x02\x00\x02\x00UI" + len(STRUCTURE_SET).to_bytes(2, "little") + STRUCTURE_SET
    (tmp_path / "rtss.dcm").write_bytes(b"\0" * 128 + b"DICM" + meta)
    np.testing.assert_array_equal(to_grid(read_image(tmp_path).data, read_grid(tmp_path)), scan())


def test_a_tilted_gantry_is_noted_and_kept(tmp_path: Path) -> None:
    tilted = affine_of(ORIENTATIONS[0], (0.7, 0.7, 3.0), (0.0, 0.0, 0.0), shear=np.tan(np.radians(15)))
    tilted = right_handed(tilted)
    write_slices(tmp_path / "series", scan(), tilted)
    image = read_image(tmp_path / "series")
    assert "tilted by 15.0 degrees" in image.notes[0]
    np.testing.assert_allclose(image.grid.affine, tilted, atol=1e-4)
    assert image.grid.voxel_ml == pytest.approx(0.7 * 0.7 * 3 / 1000, rel=1e-4)
    write_mask(tmp_path / "mask.nii.gz", image.data > 30, image.grid)
    again = read_labels(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(again.grid.affine, tilted, atol=1e-4)
    np.testing.assert_array_equal(again.data, image.data > 30)


def test_descriptions_in_latin_1_can_be_read_and_printed(tmp_path: Path) -> None:
    paths = write_slices(tmp_path, scan(), PLAIN, tags={"0008|103e": "Schaedel", "0008|0005": "ISO_IR 100"})
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"Schaedel", b"Sch\xe4del "))
    assert str(dicom_series(tmp_path)[0]).encode() == "1: 'Schädel', MR, 5 slices".encode()


def test_folders_are_told_from_files(tmp_path: Path) -> None:
    paths = write_slices(tmp_path / "study" / "series", scan(), PLAIN, names=list("abcde"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "scan.nii.gz").write_bytes(b"x" * 200)
    assert holds_dicom(tmp_path / "study")
    assert not holds_dicom(tmp_path / "other")
    with pytest.raises(UserError, match="for DICOM the folder of the series"):
        read_image(paths[0])
    with pytest.raises(UserError, match="a label map is a file"):
        read_labels(tmp_path / "study")
    with pytest.raises(UserError, match="no channel 1; choose with --series"):
        read_image(tmp_path / "study", channel=1)
    with pytest.raises(UserError, match="is not a folder"):
        dicom_series(paths[0])
