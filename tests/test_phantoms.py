"""Generated phantoms: repeatable, anatomically the right way round, and with CT and MR contrast as they should be."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from adaptmedseg.errors import UserError
from adaptmedseg.phantoms import LABELS, MODALITIES, PhantomCase, generate_case, write_phantoms
from adaptmedseg.phantoms.__main__ import main
from adaptmedseg.phantoms.generate import build_body, case_seed

SEEDS = (11, 12)


@cache
def case(seed: int, modality: str, region: str) -> PhantomCase:
    return generate_case(seed, modality, region)


def centre_mm(phantom: PhantomCase, value: int) -> np.ndarray:
    """Centre of a structure in RAS mm."""
    return phantom.affine[:3, :3] @ np.argwhere(phantom.labels == value).mean(0) + phantom.affine[:3, 3]


def median(phantom: PhantomCase, value: int) -> float:
    return float(np.median(phantom.image[phantom.labels == value]))


def test_same_seed_same_case() -> None:
    first, second = case(11, "CT", "pelvis"), generate_case(11, "CT", "pelvis")
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.affine, second.affine)


def test_other_seed_other_body() -> None:
    assert build_body(11, "pelvis").items != build_body(12, "pelvis").items
    assert build_body(11, "pelvis").items == build_body(11, "pelvis").items
    assert len({case_seed(seed, index) for seed in range(5) for index in range(200)}) == 1000


@pytest.mark.parametrize("seed", SEEDS)
def test_modalities_show_the_same_anatomy(seed: int) -> None:
    ct, mr = case(seed, "CT", "abdomen"), case(seed, "T2 MRI", "abdomen")
    # the fields of view differ, so only what both hold completely can be compared: kidneys
    for value in (9, 10):
        assert np.abs(centre_mm(ct, value) - centre_mm(mr, value)).max() < 4
    assert ct.affine.tolist() != mr.affine.tolist()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("region", ["pelvis", "abdomen"])
def test_structures_are_there(seed: int, region: str) -> None:
    phantom = case(seed, "CT", region)
    present = {int(v) for v in np.unique(phantom.labels)} - {0}
    assert present <= set(phantom.names) <= set(LABELS)
    assert {1, 2, 3, 4} <= present if region == "pelvis" else present == {7, 8, 9, 10}
    voxel_ml = abs(np.linalg.det(phantom.affine[:3, :3])) / 1000
    smallest = {1: 3, 2: 2, 3: 10, 4: 5, 7: 600, 8: 50, 9: 50, 10: 50}
    for value in present - {5, 6}:
        assert (phantom.labels == value).sum() * voxel_ml > smallest[value], phantom.names[value]


@pytest.mark.parametrize("seed", SEEDS)
def test_sides_and_neighbours(seed: int) -> None:
    abdomen, pelvis = case(seed, "CT", "abdomen"), case(seed, "T2 MRI", "pelvis")
    # in RAS+ x grows toward the patient's right
    assert centre_mm(abdomen, 10)[0] > centre_mm(abdomen, 9)[0] + 60
    assert centre_mm(abdomen, 7)[0] > centre_mm(abdomen, 8)[0] + 60
    assert centre_mm(pelvis, 3)[2] > centre_mm(pelvis, 1)[2] + 15, "the bladder is above the prostate"
    assert centre_mm(pelvis, 4)[1] < centre_mm(pelvis, 1)[1] < centre_mm(pelvis, 2)[1], "rectum, outer, inner zone"


@pytest.mark.parametrize("seed", SEEDS)
def test_hounsfield_units(seed: int) -> None:
    pelvis, abdomen = case(seed, "CT", "pelvis"), case(seed, "CT", "abdomen")
    assert pelvis.image.min() >= -1024
    assert pelvis.image.max() <= 3071
    assert -25 < median(pelvis, 3) < 330
    assert 20 < median(pelvis, 1) < 100
    assert 20 < median(pelvis, 2) < 120
    for value in (5, 6):
        if (pelvis.labels == value).sum() > 500:
            assert 150 < median(pelvis, value) < 480
    assert 30 < median(abdomen, 7) < 150
    assert -1010 < np.median(abdomen.image[abdomen.image < -930]) < -960, "air around the body"


def test_contrast_order_differs_between_ct_and_mr() -> None:
    ct, mr = case(11, "CT", "abdomen"), case(11, "T2 MRI", "abdomen")
    assert median(ct, 7) > np.median(ct.image[ct.labels == 0]), "liver is denser than what surrounds it"
    assert median(mr, 7) < median(mr, 8) < median(mr, 9) * 1.3, "T2: liver darker than spleen"
    pelvis = [case(seed, "T2 MRI", "pelvis") for seed in SEEDS]
    for phantom in pelvis:
        assert median(phantom, 3) > median(phantom, 2), "urine is the brightest in T2"
        assert median(phantom, 1) > median(phantom, 2), "T2: the peripheral zone outshines the inner gland"
    t1 = case(11, "T1 MRI", "pelvis")
    assert median(t1, 3) < median(t1, 1), "urine is dark in T1"


@pytest.mark.parametrize("modality", MODALITIES)
def test_grid_is_valid(modality: str) -> None:
    phantom = case(11, modality, "pelvis")
    spacing = np.linalg.norm(phantom.affine[:3, :3], axis=0)
    axes = phantom.affine[:3, :3] / spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert 0.5 < spacing[0] < 3
    assert spacing[1] == pytest.approx(spacing[0])
    assert 2 < spacing[2] < 5.5
    assert phantom.image.dtype == np.int16
    assert phantom.labels.dtype == np.uint8
    assert phantom.image.shape == phantom.labels.shape
    assert max(phantom.image.shape) <= 192


def test_written_folder(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "set"), "--count", "2", "--modality", "CT", "--seed", "3"]) == 0
    description = json.loads((tmp_path / "set" / "dataset.json").read_text(encoding="utf-8"))
    assert description["modality"] == {"0": "CT"}
    assert description["labels"]["2"] == "transition zone"
    assert "not patients" in description["description"]
    assert len(description["training"]) == 2
    for index, pair in enumerate(description["training"]):
        image, labels = (nib.load(tmp_path / "set" / pair[key]) for key in ("image", "label"))
        expected = generate_case(case_seed(3, index), "CT", ("pelvis", "abdomen")[index])
        np.testing.assert_array_equal(np.asarray(image.dataobj), expected.image)
        np.testing.assert_array_equal(np.asarray(labels.dataobj), expected.labels)
        np.testing.assert_allclose(image.affine, expected.affine, atol=1e-3)
        np.testing.assert_allclose(labels.affine, image.affine)
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == ["dataset.json", "images", "labels"]
    assert len(list((tmp_path / "set" / "images").iterdir())) == 2


def test_wrong_names_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="PET"):
        generate_case(1, "PET", "pelvis")
    with pytest.raises(UserError, match="thorax"):
        write_phantoms(tmp_path, count=1, modality="CT", seed=0, regions=("thorax",))
    assert main(["--out", str(tmp_path), "--count", "0"]) == 2
    assert "one or more" in capsys.readouterr().err
