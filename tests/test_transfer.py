"""Judging finished runs: effect sizes by hand, gaps, sites, learning curves, nnU-Net's results, damaged folders."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from small_cases import MODALITY, call, small_folder
from transfer_cases import COST, finished, record, run, write_comparison

from adaptmedseg.comparison.finished import Finished, FinishedRun
from adaptmedseg.comparison.judge import Scores, judge, ranked
from adaptmedseg.comparison.outcome import mean_over_seeds
from adaptmedseg.comparison.reading import read_finished
from adaptmedseg.comparison.transfer import study_transfer
from adaptmedseg.comparison.transfer_page import tables
from adaptmedseg.comparison.transfer_sentences import sentences
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.data.volume import to_grid
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.bland_altman import agreement_table, volume_agreement
from adaptmedseg.evaluation.evaluate import dice
from adaptmedseg.evaluation.gaps import find_gaps, gap_sentences, gap_tables
from adaptmedseg.evaluation.metrics import MeasureSettings
from adaptmedseg.evaluation.nnunet import nnunet_records
from adaptmedseg.evaluation.records import read_results, write_results
from adaptmedseg.evaluation.significance import patient_means, rank_biserial
from adaptmedseg.evaluation.study import StudyData, StudyNotes, save_study
from adaptmedseg.evaluation.tables import paired_differences
from adaptmedseg.evaluation.wording import change_95

# Statistics -----------------------------------------------------------------------------


def test_effect_by_hand() -> None:
    assert rank_biserial([0.1, 0.2, -0.3]) == pytest.approx((1 + 2 - 3) / 6)
    assert rank_biserial([0.1, 0.2, 0.0]) == 1.0
    assert rank_biserial([0.0]) == 0.0
    assert rank_biserial([]) is None


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=12))
def test_effect_turns_with_its_sign_and_counts_ranks(values: list[int]) -> None:
    effect = rank_biserial(values)
    assert effect is not None
    assert rank_biserial([-v for v in values]) == pytest.approx(-effect)
    some = np.array([v for v in values if v])
    ranks = rankdata(np.abs(some)) if len(some) else np.array([])
    up, down = ranks[some > 0].sum(), ranks[some < 0].sum()
    assert effect == pytest.approx((up - down) / (up + down) if len(some) else 0.0)


def test_scans_of_one_patient_are_averaged() -> None:
    assert patient_means([1.0, 3.0, 5.0], ["a", "a", "b"]) == [2.0, 5.0]


def test_agreement_of_volumes_by_hand() -> None:
    errors = (1.0, 2.0, 6.0)
    records = [record("x", str(i), 0.5, volume_ml=12 + e, truth_volume_ml=12.0) for i, e in enumerate(errors)]
    records.append(record("x", "empty", None, volume_ml=0.0, truth_volume_ml=0.0))
    (found,) = volume_agreement(records, ["x"])
    assert found.bias == pytest.approx(3.0)
    assert found.limits == pytest.approx((3 - 1.96 * np.sqrt(7), 3 + 1.96 * np.sqrt(7)))
    assert found.means == pytest.approx([12.5, 13.0, 15.0])
    assert agreement_table([found], {}).rows[0][4:] == ["+3.0", "2.6", "−2.2 to +8.2", "3"]
    assert volume_agreement(records[:2], ["x"])[0].limits is None


# Gaps -----------------------------------------------------------------------------------


def test_numbers_that_are_none_are_read_counted_and_told(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_results(path, [record("x", "a", 0.5), record("x", "b", 0.7, extra={"hd95_mm": 3.5})])
    path.write_text(path.read_text(encoding="utf-8").replace("0.7", "NaN").replace("3.5", "Infinity"), encoding="utf-8")
    first, second = read_results(path)
    assert first.not_numbers == []
    assert (second.dice, second.extra["hd95_mm"], second.not_numbers) == (None, None, ["dice", "hd95_mm"])
    (gap,) = find_gaps([first, second], {"mri": ["a", "b", "c"]})
    assert (gap.scores, gap.missing, gap.both_empty, gap.not_numbers) == (2, ["c"], 0, ["b"])
    told = " ".join(gap_sentences([gap]))
    assert "x has no score of 1 case of mri: c." in told
    assert "(NaN)" in told
    assert gap_tables([gap])[0].rows == [["x", "mri", "2", "1", "0", "0", "1"]]


def test_a_case_that_another_method_has_is_missing() -> None:
    empty = record("y", "b", None, volume_ml=0.0, truth_volume_ml=0.0)
    gaps = find_gaps([record("x", "a", 0.5), record("y", "a", 0.5), empty], {})
    assert [(gap.method, gap.missing, gap.truth_empty, gap.both_empty) for gap in gaps] == [
        ("x", ["b"], 0, 0),
        ("y", [], 1, 1),
    ]


def test_means_over_seeds_keep_what_is_no_number() -> None:
    flags = {"hd95_mm": None, "surface_elements": "voxels", "prediction_empty": True, "nsd": 0.2}
    first = record("x", "a", 0.2, extra=flags)
    second = record(
        "x", "a", 0.4, volume_ml=None, extra=flags | {"hd95_mm": 4.0, "prediction_empty": False, "nsd": 0.4}
    )
    (mean,) = mean_over_seeds([[first], [second]])
    assert (mean.dice, mean.volume_ml) == (pytest.approx(0.3), 10.0)
    wanted = {"hd95_mm": 4.0, "surface_elements": "voxels", "prediction_empty": False, "nsd": pytest.approx(0.3)}
    assert mean.extra == wanted


# Judging --------------------------------------------------------------------------------


def test_judging_by_hand() -> None:
    study = study_transfer(finished(), None, None)
    assert (study.base, study.reference, study.best) == ("base", "base", "gated")
    new = {item.row.method: item for item in study.sides if item.row.modality == "MRI, new"}
    assert list(new) == ["base", "gated", "lora"] == ranked(study.scores, "base")
    gated = new["gated"]
    assert gated.row.mean == pytest.approx(0.6)  # means of seeds 0.55 and 0.65
    assert (gated.seeds, gated.seed_sd) == (2, pytest.approx(0.1 / np.sqrt(2)))
    assert gated.change is not None
    assert gated.change.difference == pytest.approx(0.5)
    assert (gated.change.better, gated.change.worse, gated.change.effect) == (6, 0, 1.0)
    assert gated.p == pytest.approx(4 * 2 / 64)  # of four tests in the table this is among the smallest
    assert new["base"].against is None
    old = {item.row.method: item.change for item in study.sides if item.row.modality == "CT, old"}
    assert old["gated"] is not None
    assert old["lora"] is not None
    assert (old["gated"].difference, old["lora"].difference) == (0.0, pytest.approx(-0.1))
    told = " ".join(sentences(study, finished()))
    assert "gated has the highest mean Dice of the 2 strategies that adapt the base: 0.600" in told
    assert "The same score as base on every old case that both have: gated." in told
    assert "Most is forgotten by lora: −0.100 on old CT data" in told


def test_a_network_from_scratch_is_never_the_best_adaptation() -> None:
    found = finished(run("unet", [0.95] * 6))
    found.scratch.add("unet")
    study = study_transfer(found, None, "unet")
    assert study.best == "gated"
    told = sentences(study, found)
    assert "gated has the highest mean Dice of the 2 strategies" in told[0]
    assert "gated differs from unet, trained from scratch, by −0.350 (95 % interval" in told[1]
    assert "paired over the 6 cases both have, 0 better, 6 worse" in told[1]  # new data alone: 4 CT are scored too
    assert told[1].startswith("On MRI data that are new to the base, ")
    assert "not corrected for the choice among 2 strategies" in told[1]
    new = [one for one in study.scores.records if one.dataset == "mri"]
    for seed in (0, 7):
        pair = paired_differences(new, "unet", "gated", seed=seed)[-1]
        assert change_95(pair.interval) in sentences(study_transfer(found, None, "unet", seed), found)[1]


def test_learning_curves_start_at_the_base() -> None:
    few = [run("gated", [0.2 + 0.1 * n] * 6, patients=n) for n in (1, 2)]
    study = study_transfer(finished(*few), None, None)
    assert study.ticks == ["0", "1", "2", "all"]
    assert list(study.curves["all new data"]) == ["gated"]
    points = study.curves["all new data"]["gated"]
    assert [p.mean for p in points] == pytest.approx([0.1, 0.3, 0.4, 0.6])
    table = next(table for table in tables(study) if table.title == "Learning curves")
    assert table.header == ("Data", "Strategy", "0", "1", "2", "all")
    assert {row[0] for row in table.rows} == {"all new data", f"mri ({MODALITY})"}


def test_sites_are_left_out_where_folds_are_sites() -> None:
    runs = []
    for fold, site in enumerate("AB"):
        for name, value in (("base", 0.2), ("lora", 0.5 + 0.2 * fold)):
            records = [record(name, f"{site}{i}", value + 0.01 * i, fold=fold, extra={"site": site}) for i in range(3)]
            cost, seed = (None, None) if name == "base" else (COST, 0)
            runs.append(FinishedRun(name, records, seed, fold=fold, cost=cost))
    study = study_transfer(Finished(runs=runs, new={"mri"}), None, None)
    means = {(item.row.method, item.row.modality): item.row.mean for item in study.sites}
    assert means["lora", "A"] == pytest.approx(0.51)
    assert means["lora", "B"] == pytest.approx(0.71)
    assert study.left_out
    assert any(table.title == "Leave one site out" for table in tables(study))
    joined = [replace(r, fold=None) for r in runs]
    assert not study_transfer(Finished(runs=joined, new={"mri"}), None, None).left_out


def test_seeds_are_judged_by_their_own_means() -> None:
    scores = Scores.of([run("x", [0.2, 0.4], 0), run("x", [0.4, 0.8], 1)])
    (row,) = [
        item for item in judge(scores, "x", "x", lambda r: r.dataset, structures=False) if item.row.modality == "mri"
    ]
    assert row.row.mean == pytest.approx(0.45)
    assert row.seed_sd == pytest.approx(np.std([0.3, 0.6], ddof=1))


# Folders --------------------------------------------------------------------------------


def test_a_report_of_comparisons_with_gaps(tmp_path: Path) -> None:
    whole = write_comparison(tmp_path / "runs" / "patients_all")
    write_comparison(tmp_path / "runs" / "patients_2", 2)
    (whole / "lora" / "seed0" / "results.jsonl").unlink()
    broken = whole / "gated" / "seed0" / "results.jsonl"
    lines = broken.read_text(encoding="utf-8").splitlines()
    broken.write_text("\n".join([lines[0].replace("0.3", "NaN"), *lines[2:]]) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    outcome = call("transfer", tmp_path / "runs", "--out", out)
    assert outcome.code == 0, outcome
    assert "gated, the only strategy here that adapts the base, has a mean Dice of 0.6" in outcome.out
    assert "lora, seed 0 is left out" in outcome.out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "lora, seed 0 is left out" in page
    assert "holds no numbers (NaN) for 1 case of mri" in page
    assert "Learning curves" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    rows = list(csv.DictReader((out / "transfer.csv").open()))
    gated = next(r for r in rows if (r["part"], r["group"], r["strategy"]) == ("side", "MRI, new", "gated"))
    assert (gated["n"], float(gated["p_holm"]) > float(gated["p"])) == ("6", True)
    assert call("transfer", tmp_path / "runs", "--out", out).code == 0  # its own report is replaced


def edit_budget(folder: Path) -> list[str | Path]:
    write_comparison(folder / "x")
    write_comparison(folder / "y", budget={"steps": 6, "minutes": None})
    return [folder]


def damage(folder: Path) -> list[str | Path]:
    (write_comparison(folder / "x") / "comparison.json").write_text("{", encoding="utf-8")
    return [folder / "x"]


def twice(folder: Path) -> list[str | Path]:
    for name in "ab":
        save_study(folder / name, [record("x", "1", 0.5)], StudyNotes())
    return [folder / "a", folder / "b"]


def named(option: str) -> Callable[[Path], list[str | Path]]:
    return lambda folder: [write_comparison(folder / "x"), option, "full"]


BAD: dict[str, tuple[Callable[[Path], list[str | Path]], str]] = {
    "nothing there": (lambda folder: [folder], "holds neither a comparison nor an evaluation"),
    "other terms": (edit_budget, "was compared on other terms than the first (its budget differs)"),
    "damaged": (damage, "is damaged; remove the folder or leave it out"),
    "one name twice": (twice, "'x' has scores in "),
    "reference": (named("--reference"), "--reference full: has no scores here; choose one of base, gated, lora"),
    "base": (named("--base"), "--base full: has no scores here"),
    "nnU-Net without truth": (
        lambda folder: [write_comparison(folder / "x"), "--nnunet", f"nn={folder}"],
        "name the prepared data that hold the truth with --data",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(tmp_path: Path, case: str) -> None:
    make, says = BAD[case]
    outcome = call("transfer", *make(tmp_path), "--out", tmp_path / "out")
    assert outcome.code == 2, outcome
    assert says in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# nnU-Net --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    root = tmp_path_factory.mktemp("nnunet")
    labels = ["--label", "1=prostate", "--label", "2=bladder"]
    shares = ["--test-fraction", "0.5", "--val-fraction", "0"]
    source = small_folder(root / "source", 4)
    outcome = call("prepare", source, "--out", root / "set", "--modality", MODALITY, *labels, *shares)
    assert outcome.code == 0, outcome
    dataset = PreparedDataset.open(root / "set")
    return StudyData(dataset, dataset.cases("test"))


def write_predictions(folder: Path, data: StudyData, shift: int) -> None:
    """The truth, moved by some voxels along the file's first axis."""
    import nibabel as nib

    folder.mkdir()
    for case in data.cases:
        labels = np.zeros([case.grid.shape[i] for i in (2, 1, 0)], np.uint8)
        inside = tuple(slice(*side) for side in case.crop)
        for value, name in ((1, "prostate"), (2, "bladder")):
            labels[inside][case.mask(name)] = value
        moved = np.roll(to_grid(labels, case.grid), shift, axis=0)
        nib.save(nib.Nifti1Image(moved, case.grid.affine), folder / f"{case.id}.nii.gz")


def test_predicted_masks_are_measured_on_the_scanner_s_grid(prepared: StudyData, tmp_path: Path) -> None:
    write_predictions(tmp_path / "same", prepared, 0)
    assert {r.dice for r in nnunet_records("nn", tmp_path / "same", [prepared])} == {1.0}
    write_predictions(tmp_path / "moved", prepared, 1)
    found = nnunet_records("nn", tmp_path / "moved", [prepared])
    assert len(found) == 2 * len(prepared.cases)
    for one in found:
        case = next(c for c in prepared.cases if c.id == one.case)
        truth = np.zeros([case.grid.shape[i] for i in (2, 1, 0)], bool)
        truth[tuple(slice(*side) for side in case.crop)] = case.mask(one.structure)
        moved = np.roll(to_grid(truth, case.grid), 1, axis=0)
        assert one.dice == pytest.approx(dice(moved, to_grid(truth, case.grid)))
        assert one.prompt_origin == "none"
    next((tmp_path / "moved").glob("*.nii.gz")).unlink()  # a case without a mask is no failure, and told of
    assert len(nnunet_records("nn", tmp_path / "moved", [prepared])) == len(found) - 2


def test_masks_on_another_grid_are_refused_with_the_difference(prepared: StudyData, tmp_path: Path) -> None:
    import nibabel as nib

    write_predictions(tmp_path / "nn", prepared, 0)
    path = next((tmp_path / "nn").glob("*.nii.gz"))
    mask = nib.load(path)
    data, affine = np.asarray(mask.dataobj), mask.affine.copy()
    affine[:3, 3] += (3.0, 4.0, 0.0)
    nib.save(nib.Nifti1Image(data, affine), path)
    with pytest.raises(UserError, match=r"another grid .* \(its corners lie up to 5 mm off\)"):
        nnunet_records("nn", tmp_path / "nn", [prepared])
    nib.save(nib.Nifti1Image(data[:-1], mask.affine), path)
    with pytest.raises(UserError, match=rf"\({data.shape[0] - 1}×.* against {data.shape[0]}×"):
        nnunet_records("nn", tmp_path / "nn", [prepared])


def test_a_summary_is_read_and_checked(prepared: StudyData, tmp_path: Path) -> None:
    case = prepared.cases[0]
    metrics = {"1": {"Dice": 0.75, "n_pred": 4, "n_ref": case.voxels["prostate"]}}
    path = tmp_path / "summary.json"
    path.write_text(
        json.dumps({"metric_per_case": [{"metrics": metrics, "prediction_file": f"x/{case.id}.nii.gz"}]}),
        encoding="utf-8",
    )
    (one,) = nnunet_records("nn", path, [prepared])
    assert (one.case, one.structure, one.dice) == (case.id, "prostate", 0.75)
    assert one.volume_ml == pytest.approx(4 * case.grid.voxel_ml)
    path.write_text(
        path.read_text(encoding="utf-8").replace(f'"n_ref": {case.voxels["prostate"]}', '"n_ref": 3'), encoding="utf-8"
    )
    with pytest.raises(UserError, match="it was evaluated against another truth"):
        nnunet_records("nn", path, [prepared])
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="is no summary of nnU-Net"):
        nnunet_records("nn", path, [prepared])


def test_an_evaluation_and_nnunet_are_judged_together(prepared: StudyData, tmp_path: Path) -> None:
    write_predictions(tmp_path / "nn", prepared, 2)
    name = prepared.dataset.name
    records = [
        replace(one, method=method, prompt_origin="text", dice=value)
        for one in nnunet_records("x", tmp_path / "nn", [prepared])
        for method, value in (("base", 0.1), ("lora", 0.9))
    ]
    save_study(tmp_path / "study", records, StudyNotes(asked={name: ["never scored"]}))
    given = ["--nnunet", f"nnU-Net={tmp_path / 'nn'}", "--data", prepared.dataset.folder]
    outcome = call("transfer", tmp_path / "study", *given, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert "lora differs from nnU-Net, trained from scratch, by +" in outcome.out
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "nnU-Net's own results, read from nn" in page


def test_nnunet_is_measured_as_the_scores_beside_it(prepared: StudyData, tmp_path: Path) -> None:
    """By surfels within 1 mm, where an evaluation was, so that both stand in one table."""
    write_predictions(tmp_path / "nn", prepared, 2)
    way = MeasureSettings(1.0, "surfels")
    asked = nnunet_records("base", tmp_path / "nn", [prepared], way)
    save_study(tmp_path / "study", [replace(one, prompt_origin="text") for one in asked], StudyNotes())
    given = ["--nnunet", f"nnU-Net={tmp_path / 'nn'}", "--data", prepared.dataset.folder]
    outcome = call("transfer", tmp_path / "study", *given, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome
    scores = read_results(tmp_path / "out" / "results.jsonl")
    values = {method: [r.extra["nsd"] for r in scores if r.method == method] for method in ("base", "nnU-Net")}
    assert values["base"] == values["nnU-Net"]
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert page.count("## Surfaces, volumes and lesions") == 1
    assert "NSD at 1 mm; surfaces are made of surfels." in page
    assert "One method" not in page


def test_runs_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    found = read_finished([write_comparison(tmp_path / "x")])
    assert found.strategies == ["base", "gated", "lora"]
    assert [(r.strategy, r.seed) for r in found.runs] == [("base", None), ("gated", 0), ("gated", 1), ("lora", 0)]
    assert (found.new, found.old) == ({"mri"}, {"ct"})
    assert "nowhere/mri" in found.problems[0]


def test_several_evaluations_make_one_report(tmp_path: Path) -> None:
    for name in ("one", "two"):
        scores = [record(name, case, 0.5) for case in "abc"]
        save_study(
            tmp_path / name, scores, StudyNotes(licences={name: f"terms of {name}"}, asked={"mri": list("abcd")})
        )
    outcome = call("report", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "both")
    assert outcome.code == 0, outcome
    page = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    assert all(word in page for word in ("terms of one", "terms of two", "two has no score of 1 case of mri: d."))
    again = call("report", tmp_path / "one", tmp_path / "both", "--out", tmp_path / "new")
    assert (again.code, "'one' was scored in" in again.err) == (2, True)
    assert call("report", tmp_path / "one", tmp_path / "two").code == 2
