"""What a transfer study must not claim, mix up or overwrite: sides, bases, sources, folders, gaps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_cases import MODALITY, call, small_folder
from transfer_cases import COST, finished, record, run, write_comparison

from adaptmedseg.comparison.finished import Finished, FinishedRun
from adaptmedseg.comparison.locate import locate
from adaptmedseg.comparison.reading import read_finished
from adaptmedseg.comparison.sides import side_notes
from adaptmedseg.comparison.transfer import study_transfer
from adaptmedseg.comparison.transfer_page import tables
from adaptmedseg.comparison.transfer_sentences import caveats, sentences
from adaptmedseg.data.files import file_sha256
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import read_results, write_results
from adaptmedseg.evaluation.study import StudyNotes, save_study


def told(found: Finished, base: str | None = None) -> str:
    return " ".join(sentences(study_transfer(found, base, None), found))


def scores(strategy: str, dataset: str, values: Sequence[float], seed: int | None = 0) -> FinishedRun:
    records = [record(strategy, str(i), value, dataset) for i, value in enumerate(values)]
    return FinishedRun(strategy, records, seed, cost=None if seed is None else COST)


# Claims ---------------------------------------------------------------------------------


def test_sides_of_new_data_have_winners_of_their_own() -> None:
    values = {"base": ([0.1] * 3, [0.2] * 3), "lora": ([0.5] * 3, [0.9] * 3), "full": ([0.6] * 3, [0.4] * 3)}
    runs = [
        replace(one, records=[*one.records, *scores(name, "ct", ct, one.seed).records])
        for name, (mri, ct) in values.items()
        for one in [scores(name, "mri", mri, None if name == "base" else 0)]
    ]
    text = told(Finished(runs=runs, new={"mri", "ct"}))
    assert "On MRI data that are new to the base, full has the highest mean Dice of the 2 strategies" in text
    assert "On CT data that are new to the base, lora has the highest mean Dice of the 2 strategies" in text


def test_the_table_of_a_side_is_in_the_order_of_its_means() -> None:
    poor = run("kept", [0.2] * 6)  # the best on old data, and by far the worst on new
    poor = replace(poor, records=[replace(r, dice=1.0) if r.dataset == "ct" else r for r in poor.records])
    study = study_transfer(finished(poor), None, None)
    assert [item.row.method for item in study.by_side["MRI, new"]] == ["base", "gated", "lora", "kept"]
    assert [item.row.method for item in study.by_side["CT, old"]] == ["base", "kept", "gated", "lora"]


def test_one_strategy_is_not_the_highest_of_one() -> None:
    found = Finished(runs=[run("base", [0.1] * 4, None), run("lora", [0.5] * 4), run("unet", [0.9] * 4)])
    found.scratch.add("unet")
    found.new, found.old = {"mri"}, {"ct"}
    text = told(found)
    assert "lora, the only strategy here that adapts the base, has a mean Dice of 0.500 (95 % interval" in text
    assert "highest" not in text
    assert "choice among" not in text
    assert "No strategy that adapts the base has scores" in told(replace(found, runs=[found.runs[0], found.runs[2]]))


def test_prompts_from_the_truth_do_not_compete() -> None:
    oracle = [record("helped", str(i), 0.99, prompt_origin="oracle box") for i in range(6)]
    text = told(finished(FinishedRun("helped", oracle, 0, cost=COST)))
    assert "gated has the highest mean Dice of the 2 strategies" in text
    assert "helped" not in text


def test_a_network_from_scratch_forgets_nothing() -> None:
    worse = run("unet", [0.2] * 6)
    worse = replace(worse, records=[replace(r, dice=0.0) if r.dataset == "ct" else r for r in worse.records])
    found = finished(worse)
    found.scratch.add("unet")
    assert "Most is forgotten by lora" in told(found)


def test_means_over_other_cases_and_pairs_are_told() -> None:
    short = run("short", [0.3, 0.4, 0.5, 0.6])
    short = replace(short, records=[r for r in short.records if r.case not in ("0", "ct1")])
    nan = run("nan", [0.9] * 6)
    nan = replace(nan, records=[replace(r, dice=None) if r.case == "5" else r for r in nan.records])
    found = finished(short, nan)
    study = study_transfer(found, None, None)
    notes = " ".join(caveats(study, found))
    assert "On new MRI data, short and base are paired over the 3 cases both have, of 6." in notes
    assert "On old CT data, short and base are paired over the 3 cases both have, of 4." in notes
    assert "On new MRI data, nan and base are paired over the 5 cases both have, of 6." in notes
    assert "The means are over 3 to 6 cases." in sentences(study, found)[0]
    assert not re.search(r"nan[ ,;)–](?!has)", " ".join(sentences(study, found)))
    assert "gated" not in notes


def test_structures_and_sides_without_scores_are_told() -> None:
    base = [record("base", str(i), 0.1, structure=name) for i in range(3) for name in ("prostate", "bladder")]
    part = [record("lora", str(i), 0.4) for i in range(3)]
    runs = [FinishedRun("base", [*base, record("base", "c", 0.8, "ct")]), FinishedRun("lora", part, 0, cost=COST)]
    found = Finished(runs=runs, new={"mri"}, old={"ct"})
    notes = caveats(study_transfer(found, None, None), found)
    assert "On new MRI data, lora and base are paired over the 3 structures of cases that both have, of 6." in notes
    assert "No score on old CT data: lora." in notes


def test_a_case_that_one_seed_lacks_is_told() -> None:
    found = finished()
    found.runs[2] = replace(found.runs[2], records=found.runs[2].records[2:])
    notes = caveats(study_transfer(found, None, None), found)
    assert any(note.startswith("gated, seed 1 has no score of 2 cases that another seed has") for note in notes)


# Bases and curves -----------------------------------------------------------------------


def test_the_base_does_not_depend_on_the_order_of_folders(tmp_path: Path) -> None:
    comparison = write_comparison(tmp_path / "compared")
    save_study(tmp_path / "one", [record(name, "0", 0.5) for name in ("a", "b")], StudyNotes())
    save_study(tmp_path / "two", [record("c", "0", 0.5)], StudyNotes())
    for folders in ([comparison, tmp_path / "one"], [tmp_path / "one", comparison]):
        assert study_transfer(read_finished(folders), None, None).base == "base"
    assert study_transfer(read_finished([tmp_path / "one"]), None, None).base == "a"
    for folders in ([tmp_path / "one", tmp_path / "two"], [tmp_path / "two", tmp_path / "one"]):
        with pytest.raises(UserError, match=r"^a, c: each of them could be .* name one with --base"):
            study_transfer(read_finished(folders), None, None)
        assert study_transfer(read_finished(folders), "c", None).base == "c"


def test_trainings_alone_need_a_named_base() -> None:
    found = replace(finished(), runs=finished().runs[1:])
    with pytest.raises(UserError, match=r"the base without training has no scores; .* --base: gated, lora"):
        study_transfer(found, None, None)
    assert study_transfer(found, "lora", None).best == "gated"


def stages(*patients: int | None) -> Finished:
    """Base, `gated` and `unet` trained on so many patients, the base scored anew at each."""
    runs = []
    for number, one in enumerate(patients):
        runs.append(run("base", [0.1] * 6, None, patients=one))
        runs += [run(name, [0.2 + 0.1 * number] * 6, patients=one) for name in ("gated", "unet")]
    return Finished(runs=runs, new={"mri"}, old={"ct"}, scratch={"unet"})


def test_curves_without_all_patients_start_at_the_base() -> None:
    study = study_transfer(stages(1, 2, 5), None, None)
    assert study.ticks == ["0", "1", "2", "5"]
    curves = study.curves["all new data"]
    assert [(p.tick, p.mean) for p in curves["gated"]] == [
        (tick, pytest.approx(mean)) for tick, mean in (("0", 0.1), ("1", 0.2), ("2", 0.3), ("5", 0.4))
    ]
    assert [p.tick for p in curves["unet"]] == ["1", "2", "5"]
    table = next(table for table in tables(study) if table.title == "Learning curves")
    assert all(any(row[column] != "—" for row in table.rows) for column in range(len(table.header)))


def test_the_patients_of_the_tables_are_told() -> None:
    found = stages(1, 2)
    notes = caveats(study_transfer(found, None, None), found)
    assert "The scores are of trainings on 2 patients of each data set, the most there are." in notes
    found.runs = [one for one in found.runs if one.patients == 1 or one.strategy != "unet"]
    notes = caveats(study_transfer(found, None, None), found)
    assert "Trained on fewer patients than the rest, and in no table of scores: unet." in notes
    found = stages(1, None)
    notes = caveats(study_transfer(found, None, None), found)
    told = "The scores are of trainings on all patients; those on fewer are in the learning curves alone."
    assert told in notes
    found = stages(None)
    assert told not in caveats(study_transfer(found, None, None), found)


def test_a_point_of_a_curve_over_fewer_cases_is_told() -> None:
    found = stages(1, 2)
    assert not any("Learning curves" in note for note in caveats(study_transfer(found, None, None), found))
    first = next(one for one in found.runs if one.strategy == "gated" and one.patients == 1)
    first.records[0] = replace(first.records[0], dice=None)
    notes = caveats(study_transfer(found, None, None), found)
    told = (
        "Learning curves: gated, trained on 1 patient, has a score of 5 of the 6 cases; its mean is over these alone."
    )
    assert [note for note in notes if "Learning curves" in note] == [told]


def test_a_trained_base_is_no_start_of_curves() -> None:
    found = stages(1, None)
    found.runs = [one for one in found.runs if one.strategy != "base"]
    study = study_transfer(found, "gated", None)
    assert study.ticks == ["1", "all"]
    assert "0 is the base" not in next(table for table in tables(study) if table.title == "Learning curves").note


# Sites and sides ------------------------------------------------------------------------


def test_sites_of_old_data_are_left_aside() -> None:
    runs = []
    for fold, site in enumerate("AB"):
        for name, value in (("base", 0.2), ("lora", 0.5)):
            records = [record(name, f"{site}{i}", value, fold=fold, extra={"site": site}) for i in range(3)]
            records += [record(name, f"ct{i}", 0.7, "ct", extra={"site": "C"}) for i in range(3)]
            cost, seed = (None, None) if name == "base" else (COST, 0)
            runs.append(FinishedRun(name, records, seed, fold=fold, cost=cost))
    study = study_transfer(Finished(runs=runs, new={"mri"}, old={"ct"}), None, None)
    assert {item.row.modality for item in study.sites} == {"A", "B"}
    assert study.left_out
    assert {item.row.n for item in study.sites} == {3}


def test_a_side_that_was_guessed_is_told() -> None:
    found = finished()
    assert side_notes(found.runs[0].records, found) == []
    guessed = replace(found, new=set(), old=set())
    (note,) = side_notes(found.runs[0].records, guessed)
    assert note.startswith("No comparison names mri and ct: CT counts as old to the base")
    assert note in caveats(study_transfer(guessed, None, None), guessed)


# Sources --------------------------------------------------------------------------------


def test_folders_given_twice_are_read_once(tmp_path: Path) -> None:
    comparison = write_comparison(tmp_path / "runs" / "x")
    once = read_finished([comparison])
    assert len(read_finished([comparison, comparison, tmp_path / "runs"]).runs) == len(once.runs)
    save_study(tmp_path / "one", [record("x", "0", 0.5)], StudyNotes())
    assert len(read_finished([tmp_path / "one", tmp_path / "one" / ".." / "one"]).runs) == 1


def keep(folder: Path, *strategies: str) -> Path:
    for path in folder.iterdir():
        if path.is_dir() and path.name not in strategies:
            shutil.rmtree(path)
    return folder


def test_comparisons_share_their_base_and_nothing_else(tmp_path: Path) -> None:
    first = keep(write_comparison(tmp_path / "first"), "base", "gated")
    second = keep(write_comparison(tmp_path / "second"), "base", "lora")
    assert len(read_finished([first, second]).runs) == 4
    path = second / "base" / "results.jsonl"
    write_results(path, [replace(r, dice=0.5) for r in read_results(path)])
    with pytest.raises(UserError, match=r"'base' has scores in .*first.base too; leave one of the two out"):
        read_finished([first, second])
    third = keep(write_comparison(tmp_path / "third"), "gated")
    with pytest.raises(UserError, match=r"third.*: 'gated, seed 0' has scores in .*first.* too; leave one of the two"):
        read_finished([first, third])


def test_a_case_of_two_folds_is_refused(tmp_path: Path) -> None:
    folders = [write_comparison(tmp_path / str(fold), fold=fold) for fold in (0, 1)]
    with pytest.raises(UserError, match=r"'base' scores prostate in case 0 of mri and so does .*0.base; leave one"):
        read_finished(folders)


@pytest.mark.parametrize("text", ["[", "name: lora\nconfig: {seed: none}", "name: lora\nconfig: [1]"])
def test_a_damaged_job_is_left_out(tmp_path: Path, text: str) -> None:
    folder = write_comparison(tmp_path / "x")
    (folder / "lora" / "seed0" / "job.yaml").write_text(text, encoding="utf-8")
    torn = folder / "gated" / "seed1" / "results.jsonl"
    torn.write_text(torn.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    binary = folder / "gated" / "seed0" / "results.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    found = read_finished([folder])
    assert found.strategies == ["base"]
    assert "is left out: its job.yaml is damaged." in " ".join(found.missing)
    assert "gated, seed 1 is left out" in " ".join(found.missing)
    assert "is no text" in " ".join(found.missing)


def test_scores_of_another_strategy_than_the_job_names_are_left_out(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "x")
    (folder / "lora" / "seed0" / "job.yaml").write_text("name: full\nconfig: {seed: 0}", encoding="utf-8")
    found = read_finished([folder])
    assert found.strategies == ["base", "gated"]
    assert "its scores are not those of 'full', which its job.yaml names." in " ".join(found.missing)


# Data and folders -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ with a prepared set and a comparison that names it from where it was made, now elsewhere."""
    root = tmp_path_factory.mktemp("moved")
    source = small_folder(root / "source", 4)
    shares = ["--test-fraction", "0.5", "--val-fraction", "0", "--label", "1=prostate", "--label", "2=bladder"]
    outcome = call("prepare", source, "--out", root / "old" / "data" / "mine", "--modality", MODALITY, *shares)
    assert outcome.code == 0, outcome
    digest = file_sha256(root / "old" / "data" / "mine" / "manifest.json")
    write_comparison(root / "old" / "compared", new={"runs/data/mine": digest}, old={})
    (root / "old").rename(root / "results")
    return root / "results"


def test_data_are_found_above_the_comparison(moved: Path) -> None:
    found = read_finished([moved / "compared"])
    assert found.unread == {}
    assert list(found.sources) == list(found.new)
    assert len(found.new) == 1


def test_other_data_of_that_name_are_not_taken(moved: Path) -> None:
    with pytest.raises(UserError, match=r"mine is not the data set that .*compared was made with"):
        locate(Path("runs/data/mine"), "another", moved / "compared")
    with pytest.raises(UserError, match="no prepared data set, neither from here nor from a folder above"):
        locate(Path("runs/data/yours"), "another", moved / "compared")


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    comparison = write_comparison(tmp_path / "x")
    other = tmp_path / "other"
    save_study(other, [record("x", "1", 0.5)], StudyNotes())
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    outcome = call("transfer", comparison, "--out", other)
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1
    assert "which is no part of a transfer study; choose a new folder for --out" in outcome.err
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "is a file" in call("transfer", comparison, "--out", tmp_path / "file").err


def test_an_earlier_study_stays_until_the_new_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = write_comparison(tmp_path / "x")
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is free
    assert call("transfer", comparison, "--out", out).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(*_given: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("adaptmedseg.comparison.transfer_page.report_study", full)
        outcome = call("transfer", comparison, "--out", out, "--title", "Another")
    assert outcome.code != 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x"]
    assert call("transfer", comparison, "--out", out, "--title", "Another").code == 0
    assert "Another" in (out / "report.html").read_text(encoding="utf-8")
    (out / "mine.txt").write_text("x", encoding="utf-8")
    assert "holds mine.txt" in call("transfer", comparison, "--out", out).err
    assert json.loads((out / "study.json").read_text(encoding="utf-8"))["methods"]
