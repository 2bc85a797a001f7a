"""What `check` says of a folder."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from adaptmedseg.data.check import check_folder
from adaptmedseg.data.check_result import CheckReport
from adaptmedseg.doctor.console import print_report
from adaptmedseg.errors import UserError

DATA = Path(os.environ.get("ADAPTMEDSEG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
KIDNEYS = {1: "left kidney", 2: "right kidney"}


def save_case(
    root: Path, name: str, *, left: tuple[int, int, int], right: tuple[int, int, int], image: np.ndarray | None = None
) -> None:
    """A case on a RAS grid of 1 × 1 × 2 mm with a voxel cube of 3³ round each kidney's centre (x, y, z)."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    labels = np.zeros((16, 16, 12), np.uint8)
    for value, (x, y, z) in enumerate((left, right), start=1):
        labels[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = value
    if image is None:
        image = np.random.default_rng(len(list(root.glob("images/*")))).integers(-1000, 1000, labels.shape)
    for kind, array in (("images", image.astype(np.int16)), ("labels", labels)):
        (root / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), root / kind / f"{name}.nii.gz")


def printed(report: CheckReport) -> str:
    text = io.StringIO()
    print_report(report, Console(file=text, width=200))
    return text.getvalue()


def test_a_good_folder(tmp_path: Path) -> None:
    save_case(tmp_path, "a", left=(3, 8, 6), right=(12, 8, 6))
    calls: list[tuple[int, int]] = []
    report = check_folder(tmp_path, modality="CT", labels=KIDNEYS, progress=lambda *at: calls.append(at))
    assert (report.errors, report.warnings, report.exit_code) == ((), (), 0)
    case = report.cases[0]
    assert (case.shape, case.spacing, case.orientation) == ((12, 16, 16), (2.0, 1.0, 1.0), "RAS")
    assert case.volumes_ml == pytest.approx({"left kidney": 0.054, "right kidney": 0.054})
    assert calls == [(1, 1)]
    assert "12 × 16 × 16" in printed(report)
    assert "1 cases, 0 of them bad" in printed(report)


def test_bad_cases_are_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    for name in "abc":
        save_case(tmp_path, name, left=(3, 8, 6), right=(12, 8, 6))
    (tmp_path / "images" / "a.nii.gz").write_bytes(b"")
    (tmp_path / "labels" / "b.nii.gz").unlink()
    report = check_folder(tmp_path, modality="CT", labels=KIDNEYS)
    assert report.exit_code == 1
    assert len(report.cases) == 2
    assert any("a.nii.gz is truncated" in error for error in report.errors)
    assert any("b.nii.gz has no label" in error for error in report.errors)
    assert "error" in printed(report)


@pytest.mark.parametrize(
    ("left", "right", "says"),
    [
        ((12, 8, 6), (3, 8, 6), "left kidney lies to the right of right kidney"),
        ((8, 3, 6), (8, 12, 6), "do not lie side by side"),
        ((1, 8, 6), (12, 8, 6), "left kidney touches the left or right edge"),
    ],
)
def test_doubtful_anatomy_is_a_warning(
    tmp_path: Path, left: tuple[int, int, int], right: tuple[int, int, int], says: str
) -> None:
    save_case(tmp_path, "a", left=left, right=right)
    report = check_folder(tmp_path, modality="CT", labels=KIDNEYS)
    assert report.exit_code == 0
    assert len(report.warnings) == 1
    assert says in report.warnings[0]


def test_a_modality_that_disagrees_with_the_image_is_a_warning(tmp_path: Path) -> None:
    save_case(tmp_path, "a", left=(3, 8, 6), right=(12, 8, 6))
    assert "is it CT" in check_folder(tmp_path, modality="T2", labels=KIDNEYS).warnings[0]
    positive = np.random.default_rng(0).integers(1, 900, (16, 16, 12))
    save_case(tmp_path, "a", left=(3, 8, 6), right=(12, 8, 6), image=positive)
    assert "in HU?" in check_folder(tmp_path, modality="CT", labels=KIDNEYS).warnings[0]
    assert check_folder(tmp_path, labels=KIDNEYS).warnings == ()


def test_structures_outside_the_foreground_are_a_warning(tmp_path: Path) -> None:
    image = np.full((16, 16, 12), -1000)
    image[5:] = np.random.default_rng(0).integers(0, 100, (11, 16, 12))
    save_case(tmp_path, "a", left=(3, 8, 6), right=(12, 8, 6), image=image)
    assert "27 voxels of left kidney lie outside" in " ".join(check_folder(tmp_path, labels=KIDNEYS).warnings)


def test_a_header_without_orientation_is_a_warning(tmp_path: Path) -> None:
    save_case(tmp_path, "a", left=(3, 8, 6), right=(12, 8, 6))
    for kind in ("images", "labels"):
        path = tmp_path / kind / "a.nii.gz"
        image = nib.load(path)
        bare = nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header)
        bare.set_sform(None, code=0)
        bare.set_qform(None, code=0)
        nib.save(bare, path)
    assert "no orientation" in " ".join(check_folder(tmp_path, labels={1: "liver", 2: "spleen"}).warnings)


def test_duplicates_and_unnamed_values(tmp_path: Path) -> None:
    for name in "ab":
        save_case(tmp_path, name, left=(3, 8, 6), right=(12, 8, 6), image=np.arange(16 * 16 * 12).reshape(16, 16, 12))
    report = check_folder(tmp_path, labels={1: "left kidney"})
    assert "a, b are one and the same image" in report.errors[0]
    assert "[2] that have no name" in report.errors[1]
    assert list(check_folder(tmp_path).cases[0].volumes_ml) == ["label 1", "label 2"]


def test_names_come_from_dataset_json_and_must_be_known(tmp_path: Path) -> None:
    save_case(tmp_path, "a", left=(3, 8, 6), right=(12, 8, 6))
    (tmp_path / "dataset.json").write_text(
        json.dumps({"modality": {"0": "CT"}, "labels": {"1": "lkid", "2": "spleen"}}), encoding="utf-8"
    )
    with pytest.raises(UserError, match="Unknown structure 'lkid'"):
        check_folder(tmp_path)
    report = check_folder(tmp_path, new_structures=["lkid"])
    assert list(report.cases[0].volumes_ml) == ["lkid", "spleen"]


@pytest.mark.realdata
def test_real_head_and_neck_ct_is_told_to_have_doubtful_axes() -> None:
    if not (DATA / "openkbp-ct").is_dir():
        pytest.skip(f"no real data at {DATA / 'openkbp-ct'}")
    names = "brainstem", "spinal cord", "right parotid", "left parotid", "oesophagus", "larynx", "mandible"
    report = check_folder(DATA / "openkbp-ct", modality="CT", labels=dict(enumerate(names, start=1)))
    assert report.exit_code == 0
    assert sum("do not lie side by side" in warning for warning in report.warnings) == 14


def test_a_left_ventricle_has_no_partner_and_one_sentence_names_all_that_is_cut(tmp_path: Path) -> None:
    save_case(tmp_path, "a", left=(8, 3, 1), right=(8, 8, 1))
    report = check_folder(tmp_path, labels={1: "left ventricle", 2: "myocardium"})
    (case,) = report.cases
    expected = "left ventricle and myocardium touch the lower or upper edge of the volume and may be cut off"
    assert case.short_warnings == (expected,)
    assert report.warnings == (f"{tmp_path / 'images' / 'a.nii.gz'}: {expected}",)
