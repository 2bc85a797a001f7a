"""The doctor: comparisons between cases, advice, proposals, repairs, the page, and what it never does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from small_cases import AFFINE, SHAPE, call, save, small_folder, small_image, small_labels

from adaptmedseg.cli.common import config_path
from adaptmedseg.data.check import check_folder
from adaptmedseg.data.check_result import CaseCheck, CheckReport
from adaptmedseg.data.cohort import compare_cases
from adaptmedseg.data.repair import repair_folder
from adaptmedseg.data.similarity import signature
from adaptmedseg.doctor.advice import advise
from adaptmedseg.doctor.cost import TRIED_STEPS, measure_cost
from adaptmedseg.doctor.picture import case_png
from adaptmedseg.doctor.proposal import propose
from adaptmedseg.errors import UserError
from adaptmedseg.training.config import AugmentConfig, BudgetConfig, TrainConfig
from adaptmedseg.training.config_file import load_config

LABELS = {1: "left kidney", 2: "right kidney"}
OPTIONS = ("--modality", "T2 MRI", "--label", "1=liver", "--label", "2=spleen")


# Cases against each other -----------------------------------------------------------------


def case(name: str, spacing: tuple[float, float, float] = (3.0, 1.0, 1.0), volume: float = 20.0) -> CaseCheck:
    seed = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2**32
    image = np.random.default_rng(seed).random((6, 16, 16))
    crop = ((0, 32), (0, 128), (0, 128))
    return CaseCheck(
        name, (32, 128, 128), spacing, "RAS", (0.0, 1.0), {"prostate": volume}, crop=crop,
        voxels={"prostate": int(volume * 100)}, darkened={"prostate": 0.1}, look=signature(image, (8.0, 6.0, 6.0)),
    )  # fmt: skip


def test_unlike_cases_are_named_with_what_is_usual() -> None:
    cases = [*map(case, "abcde"), case("odd", (3.0, 4.0, 1.0)), case("huge", volume=900.0)]
    warnings = compare_cases(cases)
    assert sorted(warnings) == ["huge", "odd"]
    assert "3 × 4 × 1 mm where the usual case has 3 × 1 × 1 mm" in warnings["odd"][0]
    assert "prostate has 900 ml where the usual case has 20 ml" in warnings["huge"][0]
    assert compare_cases([case("a"), case("huge", volume=900.0)]) == {}


def test_near_duplicates_in_a_folder(tmp_path: Path) -> None:
    root = small_folder(tmp_path, 2)
    save(root / "images" / "copy.nii.gz", (small_image(0) * 2 + 3).astype(np.int16))
    save(root / "labels" / "copy.nii.gz", small_labels(0))
    save(root / "images" / "case_0_visit2.nii.gz", (small_image(0) * 3).astype(np.int16))  # one patient by its name
    save(root / "labels" / "case_0_visit2.nii.gz", small_labels(0))
    told = [text for text in check_folder(root).warnings if "looks like the case" in text]
    assert sorted(text.split(" (")[0] for text in told) == [
        "copy: looks like the case case_0",
        "copy: looks like the case case_0_visit2",
    ]


def test_bright_tissue_cut_off_is_a_warning(tmp_path: Path) -> None:
    root = small_folder(tmp_path, 1)
    save(root / "images" / "case_0.nii.gz", small_image(0).clip(max=255))
    assert "has the highest value, 255" in " ".join(check_folder(root).warnings)


# Advice and proposal ----------------------------------------------------------------------


def test_advice_in_figures() -> None:
    report = CheckReport((case("a"), case("b"), CaseCheck("bad", errors=("broken",))))
    found = advise(report, (16, 64, 64))
    assert found is not None
    assert (found.spacing, found.view_mm) == ((3.0, 1.0, 1.0), (6.0, 2.0, 2.0))
    assert found.view_voxels == {"prostate": 250.0}
    assert (found.hides_tissue, found.uneven, found.annotating) == (False, False, {"prostate": 2})
    assert advise(CheckReport((CaseCheck("bad", errors=("broken",)),)), (16, 64, 64)) is None


def test_small_structures_lead_to_windows_and_dark_ones_to_another_rule(tmp_path: Path) -> None:
    tiny = CaseCheck(**{**vars(case("a")), "voxels": {"prostate": 90}, "darkened": {"prostate": 0.7}})
    found = advise(CheckReport((tiny,)), (8, 32, 32))
    assert found is not None
    assert any("few voxels are left of prostate" in text for text in found.sentences)
    text = propose(config_path("adapt"), "mine", "prepared/mine", found, 40, "MR")
    path = tmp_path / "proposed.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_config(path, TrainConfig)
    assert (config.name, config.data.paths, config.data.zoom_in) == ("mine", ["prepared/mine"], 0.5)
    assert (config.data.normalise.rule, config.budget.minutes, config.structures_per_image) == ("percentile", 20, 1)
    assert "#   data.zoom_in: small structures are specks" in text
    in_ct = yaml.safe_load(propose(config_path("adapt"), "mine", "p", found, 40, "CT"))
    assert (in_ct["data"]["normalise"]["rule"], in_ct["augment"]["bias_field"]) == ("segvol", 0.0)


def test_cost_is_measured_by_real_steps() -> None:
    import torch

    quick = TrainConfig(
        name="quick", base="fresh:small", budget=BudgetConfig(minutes=2), batch_size=1, augment=AugmentConfig(spatial=0)
    )
    cost = measure_cost(quick, ["prostate"], "T2 MRI", 10, (20, 320, 320), torch.device("cpu"))
    assert cost.seconds > 0
    assert cost.steps == pytest.approx(120 / cost.seconds, abs=1)
    assert cost.looks_a_case == pytest.approx(cost.steps / 10)
    assert cost.predict_bytes > 16 * 20 * 320 * 320
    assert cost.steps > TRIED_STEPS
    assert "step of 'quick' takes" in cost.sentences("quick")[0]


# The page ---------------------------------------------------------------------------------


def test_a_picture_shows_each_structure_in_its_colour() -> None:
    import io

    from PIL import Image

    image, mask = np.zeros((8, 20, 20), np.float32), np.zeros((8, 20, 20), bool)
    mask[2:6, 5:15, 5:15] = True
    png = case_png(image, {"liver": mask}, (3.0, 1.0, 1.0), (0, 1), {"liver": (10, 200, 30)})
    pixels = np.array(Image.open(io.BytesIO(png)))
    marked = (pixels == (10, 200, 30)).all(-1)
    assert 0.01 < marked.mean() < 0.3
    assert (pixels[~marked] == 0).all()


def test_the_page_lists_every_case_worst_first(tmp_path: Path) -> None:
    root = small_folder(tmp_path / "in", 3)
    (root / "images" / "case_2.nii.gz").write_bytes(b"")
    save(root / "images" / "case_1.nii.gz", small_image(1).clip(max=255))
    outcome = call("check", root, *OPTIONS, "--out", tmp_path / "out")
    assert outcome.code == 1
    page = (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
    places = [page.index(f"<h3>case_{i}") for i in (2, 1, 0)]
    assert places == sorted(places)
    assert page.count("data:image/png;base64,") == 2
    assert "<script" not in page
    assert "http" not in page
    facts = json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))
    assert [bool(entry["errors"]) for entry in facts["cases"]] == [False, False, True]
    assert load_config(tmp_path / "out" / "proposed.yaml", TrainConfig).name == "in_proposed"


# Repair -----------------------------------------------------------------------------------


@pytest.fixture
def unwell(tmp_path: Path) -> Path:
    """Four cases: a shifted header, a fourth axis, labels as floats, and one that no program should touch."""
    root = small_folder(tmp_path / "in", 4)
    near, far = AFFINE.copy(), AFFINE.copy()
    near[:3, 3] += 0.8
    far[:3, 3] += 40
    save(root / "labels" / "case_0.nii.gz", small_labels(0), near)
    save(root / "images" / "case_1.nii.gz", small_image(1)[..., None])
    save(root / "labels" / "case_2.nii.gz", small_labels(2).astype(np.float32))
    save(root / "labels" / "case_3.nii.gz", small_labels(3), far)
    return root


def bytes_below(root: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def test_repairs_are_copies_and_leave_what_needs_a_person(unwell: Path, tmp_path: Path) -> None:
    before = bytes_below(unwell)
    done = repair_folder(unwell, tmp_path / "out")
    assert bytes_below(unwell) == before
    assert done.repaired == 3
    assert "lay 1.39 mm off its image" in done.done["case_0"][0]
    assert "fourth axis" in done.done["case_1"][0]
    assert "float32" in done.done["case_2"][0]
    assert list(done.left_out) == ["case_3"]
    assert "more than a voxel" in done.left_out["case_3"]
    assert check_folder(tmp_path / "out", labels=LABELS).errors == ()
    for seed in range(3):
        labels = nib.load(tmp_path / "out" / "labels" / f"case_{seed}.nii.gz")
        assert (labels.shape, labels.get_data_dtype()) == (SHAPE, np.uint8)
        np.testing.assert_array_equal(np.asarray(labels.dataobj), small_labels(seed))
        np.testing.assert_allclose(labels.affine, AFFINE, atol=1e-5)
        image = nib.load(tmp_path / "out" / "images" / f"case_{seed}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj), small_image(seed))
    assert json.loads((tmp_path / "out" / "repairs.json").read_text(encoding="utf-8"))["done"] == done.done


def test_repair_by_the_command_line(unwell: Path, tmp_path: Path) -> None:
    outcome = call("check", unwell, *OPTIONS, "--repair", tmp_path / "out")
    assert outcome.code == 1
    assert "3 cases, 3 of them repaired" in outcome.out
    assert "left out: " in outcome.out
    assert call("check", tmp_path / "out", *OPTIONS).code == 0
    assert call("check", unwell, *OPTIONS, "--repair", tmp_path / "out").code == 2


def test_repair_never_writes_into_the_source(unwell: Path) -> None:
    with pytest.raises(UserError, match="choose a new folder for --repair"):
        repair_folder(unwell, unwell)


def test_a_repaired_case_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("adaptmedseg.data.repair.write_mask", full)
    repairs = repair_folder(small_folder(tmp_path / "in", 1), tmp_path / "out")
    assert repairs.left_out == {"case_0": "the disk is full"}
    assert not list((tmp_path / "out").rglob("*.nii.gz"))
