"""Controlled shifts: severities that grow, draws that repeat, truth that moves along, and numbers by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from adaptmedseg.preprocessing.folder import prepare_folder
from matplotlib.figure import Figure
from small_cases import MODALITY, call, small_folder

from adaptmedseg.checkpoints.store import save_base
from adaptmedseg.data.overlap import dice
from adaptmedseg.evaluation import style
from adaptmedseg.evaluation.records import Record, read_results
from adaptmedseg.evaluation.shifts.complexity import complexity
from adaptmedseg.evaluation.shifts.corruptions import CORRUPTIONS
from adaptmedseg.evaluation.shifts.geometry import GEOMETRY
from adaptmedseg.evaluation.shifts.page import shifts_page
from adaptmedseg.evaluation.shifts.run import SHIFTS
from adaptmedseg.evaluation.shifts.scene import Scene, Shift
from adaptmedseg.evaluation.shifts.summary import covariates, kept_dice
from adaptmedseg.models.segvol import SegVol

SHAPE, SPACING = (14, 40, 36), (3.0, 1.0, 1.5)
BY_NAME = {shift.name: shift for shift in SHIFTS}


def scene() -> Scene:
    """A smooth body with a bright ball in it, right of the middle."""
    d, h, w = np.indices(SHAPE)
    body = ((h - 20) / 18) ** 2 + ((w - 18) / 16) ** 2 < 1
    ball = ((d - 7) / 4) ** 2 + ((h - 18) / 8) ** 2 + ((w - 22) / 7) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 0.02, SHAPE)
    image = np.clip(body * (0.35 + 0.3 * ball + noise), 0, 1).astype(np.float32)
    return Scene(image, {"left kidney": ball}, SPACING)


def applied(shift: Shift, level: float, seed: int = 1) -> Scene:
    return shift.apply(scene(), level, np.random.default_rng(seed))


@pytest.mark.parametrize("shift", CORRUPTIONS, ids=lambda shift: shift.name)
def test_corruptions_grow_and_leave_the_anatomy(shift: Shift) -> None:
    clean = scene()
    changed = [applied(shift, level) for level in shift.levels]
    errors = [float(np.abs(one.image - clean.image).mean()) for one in changed]
    assert errors == sorted(errors)
    assert errors[0] > 0.0005
    assert errors[-1] > 1.5 * errors[0]
    for one in changed:
        assert one.image.shape == SHAPE
        assert (one.image.dtype, one.mirrored) == (np.float32, False)
        assert one.image.min() >= 0
        assert one.image.max() <= 1
        np.testing.assert_array_equal(one.masks["left kidney"], clean.masks["left kidney"])


@pytest.mark.parametrize("shift", SHIFTS, ids=lambda shift: shift.name)
def test_the_seed_alone_decides(shift: Shift) -> None:
    level = shift.levels[len(shift.levels) // 2]
    first, again = applied(shift, level), applied(shift, level)
    np.testing.assert_array_equal(first.image, again.image)
    others = [applied(shift, level, seed) for seed in range(2, 8)]
    fixed = shift.name in ("blur", "anisotropy", "contrast inversion") or shift.name.startswith("flip")
    assert all(np.array_equal(first.image, other.image) for other in others) == fixed


@pytest.mark.parametrize("shift", GEOMETRY, ids=lambda shift: shift.name)
def test_truth_moves_with_the_image(shift: Shift) -> None:
    """The ball is brighter than all else, before and after: a threshold finds it where the mask says."""
    for level in shift.levels:
        moved = applied(shift, level)
        found = dice(moved.image > 0.5, moved.masks["left kidney"])
        assert found is not None
        assert found > 0.9
        assert not np.array_equal(moved.masks["left kidney"], scene().masks["left kidney"])
        assert moved.mirrored == (shift.name == "flip left to right")


def test_the_strongest_contrast_is_the_negative() -> None:
    clean, negative = scene(), applied(BY_NAME["contrast inversion"], -1.0)
    foreground = clean.image > 0
    mean = clean.image[foreground].mean()
    np.testing.assert_allclose(negative.image[foreground], np.clip(2 * mean - clean.image[foreground], 0, 1), atol=1e-5)
    assert not negative.image[~foreground].any()


def test_complexity_by_hand() -> None:
    image, mask = np.full((9, 9, 9), 0.2), np.zeros((9, 9, 9), bool)
    mask[3:6, 3:6, 3:6] = True
    image[mask] = 0.6
    image[4, 4, 4] = 0.9
    found = complexity(image, mask)
    assert found.size_share == pytest.approx(27 / 729)
    inner = np.array([0.6] * 26 + [0.9])
    assert found.boundary_contrast == pytest.approx((inner.mean() - 0.2) / np.sqrt(inner.var() / 2))
    assert found.texture_entropy == pytest.approx(-(26 / 27 * np.log2(26 / 27) + 1 / 27 * np.log2(1 / 27)))
    assert complexity(image, np.zeros_like(mask)).as_dict() == {
        "size_share": 0.0, "boundary_contrast": None, "texture_entropy": None,
    }  # fmt: skip


def record(case: str, dice: float | None, shift: str = "none", severity: int = 0, **extra: object) -> Record:
    return Record(
        "m", "d", MODALITY, case, case, "prostate", "text", dice, 1.0, 1.0,
        extra={"shift": shift, "severity": severity, "level": None, **extra},
    )  # fmt: skip


def test_kept_dice_by_hand() -> None:
    """Clean 0.8, 0.4, 0.4: a ratio of sums, in which the case that nobody scores when clean has no say."""
    shift = dataclasses.replace(BY_NAME["noise"], levels=(0.1, 0.2))
    other = dataclasses.replace(BY_NAME["blur"], levels=(1.0,))
    records = [record("a", 0.8), record("b", 0.4), record("c", 0.4), record("d", None)]
    for case, (one, two, blurred) in {"a": (0.8, 0.4, 0.8), "b": (0.4, 0, 0.4), "c": (0.0, 0.4, 0.0)}.items():
        records += [record(case, one, "noise", 1), record(case, two, "noise", 2), record(case, blurred, "blur", 1)]
    records += [record("d", 0.0, "noise", 1)]
    rows = {row.shift: row for row in kept_dice(records, [shift, other])}
    assert rows["noise"].by_severity == pytest.approx((1.2 / 1.6, 0.8 / 1.6))
    assert rows["noise"].mean == pytest.approx((0.75 + 0.5) / 2)
    assert rows["blur"].mean == pytest.approx(0.75)
    assert rows["corruption"].mean == pytest.approx((0.625 + 0.75) / 2)
    assert (rows["noise"].clean, rows["noise"].patients) == (pytest.approx(1.6 / 3), 4)
    interval = rows["blur"].interval
    assert interval is not None
    assert interval[0] == 0
    assert interval[1] == 1
    assert "geometry" not in rows


def test_a_gain_under_a_shift_stays_in_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(style, "to_svg", lambda figure: drawn.append(figure) or "")
    shift = dataclasses.replace(BY_NAME["noise"], levels=(0.1, 0.2))
    size = {"size_share": 0.1, "boundary_contrast": 1.0, "texture_entropy": 1.0}
    records = [record("a", 0.2, **size), record("a", 0.4, "noise", 1), record("a", 0.5, "noise", 2)]
    shifts_page(records, [shift])
    line = drawn[0].axes[0].lines[0]
    assert max(line.get_ydata()) == 2.5
    assert drawn[0].axes[0].get_ylim()[1] > 2.5


def test_a_model_that_finds_nothing_keeps_nothing() -> None:
    shift = dataclasses.replace(BY_NAME["noise"], levels=(0.1,))
    size = {"size_share": 0.1, "boundary_contrast": 1.0, "texture_entropy": 1.0}
    records = [one for case in "abcd" for one in (record(case, 0.0, **size), record(case, 0.0, "noise", 1))]
    page = shifts_page(records, [shift])
    assert [figure.file for figure in page.figures] == ["complexity-0"]  # one severity makes no curve
    (told,) = page.sentences
    assert "there is nothing that" in told
    assert "is 0.000 (4 patients; prompt: text)" in told
    assert "too few" not in told


def test_covariates_are_of_the_clean_images() -> None:
    values = {"a": (0.9, 3.0), "b": (0.5, 2.0), "c": (0.2, 1.0), "d": (0.1, None)}
    records = [
        record(case, dice, size_share=0.1, boundary_contrast=contrast, texture_entropy=-(contrast or 0.0))
        for case, (dice, contrast) in values.items()
    ]
    found = {one.name: one for one in covariates([*records, record("a", 0.0, "noise", 1)])}
    assert (found["boundary_contrast"].correlation, found["boundary_contrast"].scores) == (pytest.approx(1.0), 3)
    assert found["texture_entropy"].correlation == pytest.approx(-1.0)
    assert np.isnan(found["size_share"].correlation)


def test_shifts_from_the_command_line(tiny_base: SegVol, tmp_path: Path) -> None:
    data, out, base = tmp_path / "prepared", tmp_path / "shifts", tmp_path / "base.safetensors"
    save_base(base, tiny_base, {"name": "tiny"})
    prepare_folder(
        small_folder(tmp_path / "source", 3), data, name="mri", modality=MODALITY,
        labels={1: "left kidney", 2: "bladder"}, test_fraction=1.0, val_fraction=0.0,
    )  # fmt: skip
    asked = ["shifts", "--model", f"base={base}", "--data", data, "--device", "cpu", "--out"]
    done = call(*asked, out, "--only", "gamma,flip left to right,rotation")
    assert done.code == 0, done.err
    records = read_results(out / "shifts.jsonl")
    assert len(records) == 3 * 2 * (1 + 5 + 1 + 5)
    assert {r.prompt_origin for r in records} == {"text"}
    text = (out / "shifts.md").read_text(encoding="utf-8")
    assert "Under corruptions base keeps" in text
    assert "flip left to right" in text
    drawn = [path.read_text(encoding="utf-8") for path in (out / "shifts_files").glob("*.svg")]
    assert len(drawn) == 2
    assert not any("mathdefault" in svg for svg in drawn)  # powers of ten in a notation that nobody draws
    assert (out / "kept.csv").read_text(encoding="utf-8").count("\n") == 1 + 5
    refused = call(*asked, out)
    assert refused.code == 2
    assert "holds shifts already" in refused.err
    assert "there is no shift 'snow'" in call(*asked, tmp_path / "x", "--only", "snow").err
