"""Comparing strategies: statistics by hand, restart, failures, the table, and bad input."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wilcoxon
from small_cases import MODALITY, Outcome, call, small_folder
from test_cli import write_base
from training_cases import forked_job

from adaptmedseg.comparison import compare as compare_module
from adaptmedseg.comparison.between import difference_sentence
from adaptmedseg.comparison.job import Cost
from adaptmedseg.comparison.outcome import Outcome as StrategyOutcome
from adaptmedseg.comparison.outcome import mean_over_seeds
from adaptmedseg.comparison.table import build_table
from adaptmedseg.comparison.write import HEADER, cells, markdown_table
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import Record, write_results
from adaptmedseg.evaluation.significance import holm, paired_p
from adaptmedseg.training.config_file import named_model

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


# Statistics -----------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.5 are multiplied by 4, 3, 2, 1; none may fall below the one before.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_p_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(list(p_values))
    for p, after in zip(p_values, adjusted, strict=True):
        assert after is not None
        assert p <= after <= min(1.0, p * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert all(adjusted[a] <= adjusted[b] for a, b in pairwise(order))  # type: ignore[operator]


def test_the_signed_rank_test_is_wilcoxons() -> None:
    # All of six differences are positive: 2 of the 2^6 assignments of signs are as extreme.
    assert paired_p([0.1 * (i + 1) for i in range(6)]) == pytest.approx(2 / 64)
    mixed = [0.1, -0.2, 0.35, 0.4, -0.55, 0.6, 0.75]
    assert paired_p(mixed) == pytest.approx(wilcoxon(mixed).pvalue)
    assert paired_p([0.0, 0.0]) == 1.0
    assert paired_p([]) is None


# Table ----------------------------------------------------------------------------------


def record(method: str, dataset: str, case: str, dice: float | None, patient: str = "", structure: str = "a") -> Record:
    modality = "CT" if dataset == "old" else MODALITY
    return Record(method, dataset, modality, case, patient or case, structure, "text", dice, 1.0, 1.0)


def test_seeds_are_averaged_by_case_and_structure() -> None:
    first = [record("x", "new", "1", 0.2), record("x", "new", "2", None)]
    second = [record("x", "new", "1", 0.6), record("x", "new", "2", 0.4)]
    assert [r.dice for r in mean_over_seeds([first, second])] == pytest.approx([0.4, 0.4])
    assert mean_over_seeds([first])[1].dice is None


def outcomes() -> list[StrategyOutcome]:
    cost = Cost(trained=1000, file_bytes=2_500_000, steps=30, minutes=1.5, peak_mib=512)
    longer = cost.model_copy(update={"steps": 20, "minutes": 1.0, "peak_mib": 800.0})
    base = [record("base", "new", str(i), 0.1) for i in range(6)]
    base += [record("base", "old", str(i), 0.8) for i in range(4)]
    better = [record("lora", "new", str(i), 0.3 + 0.1 * i) for i in range(6)]
    better += [record("lora", "new", str(i), 0.5 + 0.1 * i, structure="b") for i in range(5)]
    better += [record("lora", "old", str(i), 0.8 - 0.01 * i) for i in range(4)]
    return [StrategyOutcome("base", base, [], 0), StrategyOutcome("lora", better, [cost, longer], 3)]


def test_the_table_by_hand() -> None:
    base, lora = build_table(outcomes(), {"new"}, "base", "base")
    assert base.new is not None
    assert (base.new.mean, base.new.n, base.p_new) == (pytest.approx(0.1), 6, None)
    assert base.change is not None
    assert base.change.mean == 0
    assert lora.new is not None
    assert lora.new.mean == pytest.approx(np.mean([0.4, 0.5, 0.6, 0.7, 0.8, 0.8]))
    assert lora.new.interval is not None
    assert lora.new.interval[0] < lora.new.mean < lora.new.interval[1]
    assert lora.change is not None
    assert lora.change.mean == pytest.approx(-0.015)
    assert (lora.seeds_done, lora.seeds, lora.trained, lora.file_mb, lora.peak_mib) == (2, 3, 1000, 2.5, 800)
    assert (lora.steps, lora.seconds_a_step, lora.minutes) == pytest.approx((25, 3.0, 1.25))
    assert lora.p_new == pytest.approx(2 / 64)
    assert lora.p_old == pytest.approx(2 / 8)  # three differences, one zero left out


def test_strategies_of_two_comparisons_are_paired_by_hand(tmp_path: Path) -> None:
    """Means over two seeds; what one of them lacks, and the set that is left out, play no part."""
    scores = {"first": [(0.1, 0.3), (0.2, 0.2)], "second": [(0.4, 0.6), (0.1, 0.1), (0.9, 0.9)]}
    for name, cases in scores.items():
        for seed in (0, 1):
            records = [record("full", "new", str(i), both[seed]) for i, both in enumerate(cases)]
            folder = tmp_path / name / f"seed{seed}"
            folder.mkdir(parents=True)
            write_results(
                folder / "results.jsonl", [*records, record("full", "old", "7", 0.9 - 0.8 * (name == "second"))]
            )
    told = difference_sentence(tmp_path / "first", tmp_path / "second", ["old"])
    assert ": 0.200; " in told
    assert ": 0.300; +0.100 (" in told
    assert "higher in 1 of 2 cases of 2 patients" in told
    with pytest.raises(UserError, match="holds no scores"):
        difference_sentence(tmp_path / "first", tmp_path / "third")


def test_scans_of_one_patient_are_one_piece_of_evidence() -> None:
    base = [record("base", "new", f"{p}-{i}", 0.1, p) for p in "abcd" for i in range(5)]
    other = [
        record("x", "new", f"{p}-{i}", 0.3 + 0.01 * i + 0.1 * "abcd".index(p), p) for p in "abcd" for i in range(5)
    ]
    rows = build_table([StrategyOutcome("base", base, [], 0), StrategyOutcome("x", other, [], 0)], {"new"}, "base", "x")
    assert rows[0].p_new == pytest.approx(2 / 16)
    assert rows[0].old is rows[0].change is None


def test_rows_have_a_cell_a_column() -> None:
    rows = [cells(row) for row in build_table(outcomes(), {"new"}, "base", "base")]
    assert [len(row) for row in rows] == [len(HEADER)] * 2
    assert rows[0][10] == "—"
    assert rows[1][1] == "2 of 3"
    lines = markdown_table(HEADER, rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 4


# The command ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prepared sets, new MRI and old CT, and a tiny base."""
    root = tmp_path_factory.mktemp("comparison")
    labels = ["--label", "1=prostate", "--label", "2=bladder"]
    for name, modality, seed in (("new", MODALITY, 0), ("old", "CT", 10)):
        source = small_folder(root / "source" / name, 4, seed)
        share = ["--test-fraction", "0.5", "--val-fraction", "0"]
        outcome = call("prepare", source, "--out", root / name, "--modality", modality, *labels, *share)
        assert outcome.code == 0, outcome
    write_base(root / "base.safetensors")
    return root


def compare(place: Path, out: Path, *names: str | Path, **options: str) -> Outcome:
    given = {"data": place / "new", "old": place / "old", "base": place / "base.safetensors", "device": "cpu"}
    given |= {"steps": "2", "seeds": "0", "out": out} | options
    flags = [word for key, value in given.items() if value for word in (f"--{key}", value)]
    return call("compare", *names, *flags)


def write_strategy(path: Path, **changes: object) -> Path:
    values = yaml.safe_load((CONFIGS / "strategies" / "lora.yaml").read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(values | {"name": path.stem, "precision": "fp32"} | changes), encoding="utf-8")
    return path


@pytest.fixture
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs in forked processes: starting a program anew, with its imports, is nearly all that a tiny job costs."""
    monkeypatch.setattr(compare_module, "run_job", forked_job)


@pytest.mark.usefixtures("_forked")
def test_a_comparison_trains_scores_and_continues(place: Path, tmp_path: Path) -> None:
    out, broken = tmp_path / "out", {"lr": 1e30, "matrices": "adamw", "ema": 0.0, "warmup": 0.0}
    bad = write_strategy(tmp_path / "diverges.yaml", optimiser=broken)
    first = compare(place, out, "gated", bad)
    assert first.code == 1, first
    assert "error: diverges, seed 0: " in first.err
    assert "not finite" in first.err
    rows = {row["name"]: row for row in csv.DictReader((out / "table.csv").open())}
    assert set(rows) == {"zero_shot", "gated"}  # the base is always there to compare with
    assert float(rows["gated"]["change"]) == 0.0
    assert int(rows["gated"]["trained"]) > 0
    assert float(rows["gated"]["steps"]) == 2
    assert float(rows["gated"]["peak_mib"]) > 50
    assert rows["zero_shot"]["trained"] == ""
    assert first.out.splitlines()[0].split()[0] == "strategy"
    assert "| gated |" in (out / "table.md").read_text(encoding="utf-8")
    assert "gated" in (out / "report" / "report.html").read_text(encoding="utf-8")
    model = out / "gated" / "seed0" / "run" / "model.safetensors"
    kept = model.stat().st_mtime_ns
    (out / "zero_shot" / "results.jsonl").unlink()  # as if it had been stopped there
    again = compare(place, out, "gated")
    assert again.code == 0, again
    assert "gated, seed 0: done before" in again.err
    assert "zero_shot: done before" not in again.err
    assert model.stat().st_mtime_ns == kept
    (out / "gated" / "seed0" / "cost.json").unlink()  # a training that was stopped is made again
    assert compare(place, out, "gated").code == 0
    assert model.stat().st_mtime_ns > kept


BAD = {
    "unknown strategy": (
        ["nowhere"],
        {},
        "strategy 'nowhere': neither a file nor a shipped one; shipped are zero_shot",
    ),
    "no budget": (["lora"], {"steps": ""}, "give one of them"),
    "two budgets": (["lora"], {"minutes": "1"}, "give one of them"),
    "seeds": (["lora"], {"seeds": "0,x"}, "--seeds 0,x: give different whole numbers"),
    "one seed twice": (["lora"], {"seeds": "1,1"}, "--seeds 1,1: give different whole numbers"),
    "no data": (["lora"], {"data": ""}, "give prepared data sets with --data"),
    "reference": (["lora"], {"reference": "full"}, "--reference full: is not compared here; choose one of zero_shot"),
    "twice": (["lora", "lora"], {}, "another strategy is called 'lora' too"),
    "base": (["lora"], {"base": "nothing"}, "base 'nothing': neither a known name"),
    "fold": (["lora"], {"fold": "1"}, "has no folds"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(place: Path, tmp_path: Path, case: str) -> None:
    names, options, says = BAD[case]
    outcome = compare(place, tmp_path / "out", *names, **options)
    assert outcome.code == 2, outcome
    assert says in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_common_structures(place: Path, tmp_path: Path) -> None:

    shutil.copytree(place / "new", tmp_path / "new")
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text(encoding="utf-8"))
    for entry in manifest["cases"]:
        entry["annotated"] = ["prostate"] if entry["split"] == "train" else ["bladder"]
    (tmp_path / "new" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    outcome = compare(place, tmp_path / "out", "lora", data=str(tmp_path / "new"))
    assert outcome.code == 2
    assert "training and test cases have no structure in common" in outcome.err


def test_a_folder_of_another_comparison_is_left_alone(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x", encoding="utf-8")
    outcome = compare(place, out, "lora")
    assert (outcome.code, [p.name for p in out.iterdir()]) == (2, ["mine.txt"])
    (out / "mine.txt").unlink()
    assert compare(place, out, "zero_shot").code == 0
    outcome = compare(place, out, "zero_shot", steps="3")
    assert outcome.code == 2
    assert "is another comparison (its budget differs)" in outcome.err
    # A strategy of the same name, but other settings.
    (out / "mine" / "seed0").mkdir(parents=True)
    shutil.copy(out / "zero_shot" / "job.yaml", out / "mine" / "seed0" / "job.yaml")
    outcome = compare(place, out, write_strategy(tmp_path / "mine.yaml"))
    assert outcome.code == 2
    assert "'mine' was compared with another configuration here" in outcome.err


def test_training_refuses_the_strategy_that_trains_nothing(tmp_path: Path) -> None:
    outcome = call("train", "strategies/zero_shot", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "this strategy trains nothing" in outcome.err


# Every shipped configuration ------------------------------------------------------------

# Those of a SAM have their own tests, on slices.
VOLUMES = [p for p in sorted(CONFIGS.rglob("*.yaml")) if named_model(p) != "sam"]
TRAINED = [p for p in VOLUMES if p.stem not in ("zero_shot", "grow")]


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_every_configuration_trains(place: Path, tmp_path: Path, path: Path) -> None:
    name = path.relative_to(CONFIGS).with_suffix("").as_posix()
    base = ["--base", place / "base.safetensors"] if path.stem != "unet" else []
    changes = ["budget.steps=2", "budget.minutes=null", "validations=0"]
    outcome = call(
        "train", name, "--data", place / "new", *base, "--out", tmp_path / "run", "--device", "cpu", *changes
    )
    assert outcome.code == 0, outcome
    assert "2 steps" in outcome.out


def test_growing_trains(place: Path, tmp_path: Path) -> None:
    base, two = ["--base", place / "base.safetensors"], ["budget.steps=2", "budget.minutes=null", "--device", "cpu"]
    run = tmp_path / "run"
    one = ["data.structures=[prostate]"]
    assert call("train", "tokens", "--data", place / "new", *base, "--out", run, *two, *one).code == 0
    more = [f"grow.adapter={run}", "grow.tasks={bladder: fresh}"]
    outcome = call("train", "grow", "--data", place / "new", "--out", tmp_path / "more", *two, *more)
    assert outcome.code == 0, outcome
