"""Confidence: changes that can be taken back, evidence by hand, calibration, and the review list."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from adaptmedseg.preprocessing.folder import prepare_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from small_cases import MODALITY, call, save, small_folder, small_image

from adaptmedseg.bench.metrics import bumpy_pairs, compare_metrics
from adaptmedseg.checkpoints.store import save_base
from adaptmedseg.cli.bench_evaluation import metrics_report
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.confidence import Judged, calibrated_apart, judge
from adaptmedseg.evaluation.correlation import rank_correlation
from adaptmedseg.inference.calibration import (
    Calibration,
    calibration_path,
    fit_calibration,
    read_calibration,
    write_calibration,
)
from adaptmedseg.inference.confidence import Change, Evidence, agreements, changes_of, mirror_within, sharpness
from adaptmedseg.inference.loading import load_model
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.prompts import StructurePrompt
from adaptmedseg.models.segvol import SegVol

CPU = torch.device("cpu")
SHAPE = (6, 20, 24)


@settings(max_examples=25, deadline=None)
@given(
    before=st.tuples(*[st.integers(0, 3)] * 3), after=st.tuples(*[st.integers(0, 3)] * 3), mirrored=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_changes_are_taken_back(before, after, mirrored: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, change = rng.random(SHAPE, np.float32), Change(before, after, 1.0, mirrored)
    np.testing.assert_array_equal(change.back(change.image(image)), image)
    point = [int(rng.integers(n)) for n in SHAPE]
    corner = [int(rng.integers(n)) for n in SHAPE]
    box = torch.tensor([np.minimum(point, corner).tolist(), np.maximum(point, corner).tolist()]).float()
    asked = StructurePrompt("liver", False, torch.tensor([point]).float(), torch.tensor([1]), box)
    moved = change.prompt(asked, SHAPE[2], lambda name: name)
    assert moved is not None
    assert moved.points is not None
    assert moved.box is not None
    changed = change.image(image)
    assert changed[tuple(moved.points[0].int().tolist())] == image[tuple(point)]
    assert (moved.box[0] <= moved.box[1]).all()
    low, high = moved.box.int().tolist()
    inside = changed[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
    low, high = box.int().tolist()
    original = image[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
    np.testing.assert_array_equal(inside[..., ::-1] if mirrored else inside, original)


def test_sides_change_their_names_in_the_mirror() -> None:
    partner = {"left kidney": "right kidney"}
    mirror = mirror_within(["left kidney", "right kidney", "liver"], lambda name: partner.get(name, name))
    assert (mirror("left kidney"), mirror("liver")) == ("right kidney", "liver")
    unpaired = mirror_within(["left kidney"], lambda name: partner.get(name, name))
    assert unpaired("left kidney") is None
    flip = Change(mirrored=True)
    assert flip.prompt(StructurePrompt("left kidney"), 9, unpaired) is None
    turned = flip.prompt(StructurePrompt("left kidney"), 9, mirror)
    assert turned is not None
    assert turned.structure == "right kidney"


def test_sharpness_by_hand() -> None:
    logits = np.array([[[np.log(3), -np.log(3), -100.0]]], np.float32)  # 0.75 and 0.25
    assert sharpness(logits) == pytest.approx(2 * 0.75 / (1.0 + 1))
    assert sharpness(np.array([[[50.0, -50.0]]], np.float32)) == pytest.approx(1.0)
    assert sharpness(np.full((1, 1, 3), -1.0, np.float32)) == 0


class Threshold(torch.nn.Module):
    """Marks what is brighter than 0.5 and forgets nothing: `embed` keeps the view."""

    def embed(self, image: torch.Tensor, modalities: list[str]) -> torch.Tensor:
        return image

    def segment(self, embedding: torch.Tensor, prompts) -> torch.Tensor:
        return 20 * (embedding[prompts.image_index, 0] - 0.5)


def test_a_mask_that_stays_is_trusted_more_than_one_that_goes() -> None:
    """A structure far above the threshold stays under gamma; one just above it does not."""
    segmenter = CropSegmenter(Threshold(), SHAPE, "smooth", CPU)  # type: ignore[arg-type]
    found = {}
    for name, brightness in (("bright", 0.95), ("dim", 0.52)):
        crop = np.zeros(SHAPE, np.float32)
        crop[1:5, 4:14, 6:16] = brightness
        segmenter.set_crop(crop, MODALITY)
        prompt = StructurePrompt(name)
        (result,) = segmenter.segment([prompt])
        masks = {name: result.logits > 0}
        assert masks[name].sum() == 4 * 10 * 10
        found[name] = agreements(segmenter, [prompt], masks, False, lambda name: name)[name]
        np.testing.assert_array_equal(segmenter.crop, crop)  # another segmenter asked
    assert found["bright"] > 0.9
    assert found["dim"] < found["bright"] - 0.1
    segmenter.set_crop(np.zeros(SHAPE, np.float32), MODALITY)
    empty = agreements(segmenter, [StructurePrompt("x")], {"x": np.zeros(SHAPE, bool)}, False, lambda name: name)
    assert empty == {"x": 0.0}
    assert len(changes_of(SHAPE)) == 5


def evidence_and_dice(count: int, seed: int = 0) -> list[tuple[Evidence, float]]:
    rng = np.random.default_rng(seed)
    found = []
    for agreement in rng.uniform(0.2, 0.98, count):
        evidence = Evidence(float(agreement), float(min(agreement + 0.01, 0.99)))
        found.append((evidence, float(1 / (1 + np.exp(-(0.7 * evidence.score - 0.4))))))
    return found


def test_calibration_finds_the_curve_that_made_the_data() -> None:
    pairs = evidence_and_dice(12)
    fitted = fit_calibration([e for e, _ in pairs], [d for _, d in pairs], {"file": "x"})
    assert (fitted.slope, fitted.intercept) == pytest.approx((0.7, -0.4), abs=1e-4)
    assert fitted.cases == 12
    assert all(fitted.estimate(e) == pytest.approx(d, abs=1e-4) for e, d in pairs)
    assert fitted.estimate(Evidence(0.0, 0.0)) == 0
    falling = fit_calibration([e for e, _ in pairs], [1 - d for _, d in pairs])
    assert falling.slope == pytest.approx(0, abs=1e-6)  # never turned round: more agreement is never worse
    with pytest.raises(ValueError, match="at least 4"):
        fit_calibration([Evidence(0.5, 0.5)] * 3 + [Evidence(0.0, 0.0)], [0.5] * 4)


def test_a_calibration_belongs_to_its_model(tmp_path: Path) -> None:
    path = calibration_path(tmp_path / "model.safetensors")
    assert read_calibration(path, {}) is None
    write_calibration(path, Calibration(0.7, -0.4, 12, {"file": "x"}))
    assert read_calibration(path, {"file": "x"}) == Calibration(0.7, -0.4, 12, {"file": "x"})
    with pytest.raises(UserError, match="another model"):
        read_calibration(path, {"file": "y"})
    path.write_text('{"slope": "steep"}', encoding="utf-8")
    with pytest.raises(UserError, match="no calibration"):
        read_calibration(path, {})


def test_estimates_come_from_other_folds() -> None:
    judged = []
    for group, turned in (("0", False), ("1", True)):
        for i, (evidence, dice) in enumerate(evidence_and_dice(8, seed=int(group))):
            judged.append(Judged(group, f"c{i}", f"{group}{i}", "liver", evidence, 1 - dice if turned else dice))
    found = calibrated_apart(judged)
    # What fold 1 teaches is that nothing can be told, so that all of fold 0 gets one estimate.
    first = [one.estimate for one in found if one.group == "0"]
    assert first == pytest.approx([first[0]] * 8, abs=1e-4)
    second = [one.estimate or 0 for one in found if one.group == "1"]
    assert np.ptp(second) > 0.2


def test_ranks_and_their_interval() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=40)
    value, interval = rank_correlation(truth**3, truth, range(40), rng, 200)
    assert value == pytest.approx(1.0)
    assert interval == (pytest.approx(1.0), pytest.approx(1.0))
    value, interval = rank_correlation(rng.uniform(size=40), truth, range(40), rng, 200)
    assert interval is not None
    assert interval[0] < 0 < interval[1]
    ties = np.round(truth, 1)
    assert rank_correlation(ties, truth**2, range(40), rng)[0] == pytest.approx(spearmanr(ties, truth**2).statistic)
    assert rank_correlation([1, 2, 3], [1, 2, 3], ["a", "a", "b"], rng)[1] is None
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3], range(3), rng)[0])


def test_predict_calibrate_and_bench_agree(tiny_base: SegVol, tmp_path: Path) -> None:
    base, data, out = tmp_path / "base.safetensors", tmp_path / "prepared", tmp_path / "masks"
    save_base(base, tiny_base, {"name": "tiny"})
    prepared = prepare_folder(
        small_folder(tmp_path / "source", 4), data, name="mri", modality=MODALITY,
        labels={1: "prostate", 2: "bladder"}, test_fraction=1.0, val_fraction=0.0,
    )  # fmt: skip
    for seed in range(2):
        save(tmp_path / "scans" / f"case_{seed}.nii.gz", small_image(seed))
    ask = ["predict", tmp_path / "scans", "--modality", MODALITY, "--structures", "prostate,bladder", "--model", base,
           "--device", "cpu", "--confidence", "--out"]  # fmt: skip
    first = call(*ask, out)
    assert first.code == 0, first.err
    assert "estimates no Dice" in first.err
    rows = list(csv.DictReader((out / "review.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 4
    assert {row["estimated_dice"] for row in rows} == {""}
    agreement = [Evidence(float(row["agreement"]), float(row["sharpness"])).score for row in rows]
    assert agreement == sorted(agreement)
    note = json.loads((out / "case_0.json").read_text(encoding="utf-8"))
    assert set(note["confidence"]["prostate"]) == {"estimated_dice", "agreement", "sharpness"}
    assert note["seconds"]["confidence"] >= 0
    assert "exists already" in call(*ask, out).err
    fitted = call("calibrate", base, "--data", data, "--split", "test", "--device", "cpu")
    judged = judge(load_model(str(base)), prepared.cases("test"), ["prostate", "bladder"], lambda name: name, CPU)
    assert fitted.code == 0, fitted.err
    assert "Spearman of confidence and true Dice" in fitted.out
    again = call(*ask, tmp_path / "again")
    assert again.code == 0, again.err
    rows = list(csv.DictReader((tmp_path / "again" / "review.csv").read_text(encoding="utf-8").splitlines()))
    estimates = [float(row["estimated_dice"]) for row in rows]
    assert estimates == sorted(estimates)
    assert all(0 <= value <= 1 for value in estimates)
    bench = call("bench", "confidence", "--model", f"test={base}", "--data", data, "--device", "cpu")
    assert bench.code == 0, bench.err
    assert bench.out.count("agreement") == len(judged)
    assert "write FOLD=MODEL" in call("bench", "confidence", "--model", f"best={base}", "--data", data).err


def test_the_bench_of_metrics_measures_the_same() -> None:
    found = compare_metrics((10, 32, 32), 2, 1)
    assert all(value < 1e-4 for value in found.differences.values())
    assert min(*found.ours, *found.monai) > 0
    assert len(metrics_report(found)) == 3
    prediction, truth = bumpy_pairs((10, 32, 32), 2)
    assert prediction.shape == truth.shape == (2, 10, 32, 32)
    assert not np.array_equal(prediction, truth)
