"""The ledger of prompts: origins, simulated clicks, shifted boxes, and studies that never mix them."""

from __future__ import annotations

import csv
import dataclasses
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from adaptmedseg.preprocessing.folder import prepare_folder
from small_cases import MODALITY, call, small_folder

from adaptmedseg.checkpoints.store import save_base
from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.evaluation.clicks import Click, next_click
from adaptmedseg.evaluation.evaluate import Asked, evaluate_case
from adaptmedseg.evaluation.measure_tables import count_empty, measure_tables, measures_csv
from adaptmedseg.evaluation.metrics import MeasureSettings, measure
from adaptmedseg.evaluation.prompt_study import BOX_SHIFTS, questions_of, study_page
from adaptmedseg.evaluation.questions import ByName, Clicks, FixedOutput, FromTruth
from adaptmedseg.evaluation.records import Record, read_results
from adaptmedseg.evaluation.tables import paired_differences
from adaptmedseg.inference.prompt_origin import (
    check_origin,
    is_oracle,
    oracle_box,
    oracle_clicks,
    oracle_points,
    question_of,
    with_task_token,
)
from adaptmedseg.inference.segmenter import StructureResult
from adaptmedseg.models.prompts import StructurePrompt
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.training.simulate import box_of


@pytest.mark.parametrize(
    ("origin", "oracle"),
    [
        ("text", False),
        ("text + task token + user box + user points", False),
        ("none", False),
        ("oracle box", True),  # as in results of earlier versions
        (f"text + {oracle_box(1)}", True),
        (f"text + task token + {oracle_box(50)} + {oracle_points(3)}", True),
        (oracle_clicks(1), True),
        (f"text + {oracle_clicks(10)}", True),
    ],
)
def test_origins_are_known_and_oracles_told(origin: str, oracle: bool) -> None:
    check_origin(origin)
    assert is_oracle(origin) == oracle


@pytest.mark.parametrize("origin", ["guess", "text + ", "text+oracle box", "oracle box ± x voxels", ""])
def test_no_origin_is_made_up(origin: str) -> None:
    with pytest.raises(ValueError, match="prompt_origin"):
        check_origin(origin)


def test_a_token_is_the_models_own_matter() -> None:
    assert with_task_token("text") == "text + task token"
    assert with_task_token(f"text + {oracle_box(5)}") == "text + task token + oracle box ± 5 voxels"
    assert with_task_token("oracle box") == "task token + oracle box"
    for origin in ("text", "text + oracle box", "oracle box", "2 oracle clicks"):
        assert question_of(with_task_token(origin)) == origin


def test_the_first_click_is_the_depth_of_the_truth() -> None:
    truth = np.zeros((9, 9, 9), bool)
    truth[2:7, 1:8, 1:6] = True
    assert next_click(np.zeros_like(truth), truth, (1.0, 1.0, 1.0)) == Click((4, 3, 3), True)
    assert next_click(truth, truth, (1.0, 1.0, 1.0)) is None


def test_clicks_go_to_the_largest_error_whichever_it_is() -> None:
    truth, prediction = np.zeros((5, 20, 20), bool), np.zeros((5, 20, 20), bool)
    truth[1:4, 2:7, 2:7] = True
    prediction[1:4, 2:7, 3:7] = True  # a slice of 15 voxels is missed
    prediction[1:4, 12:17, 12:15] = True  # 45 are marked wrongly
    assert next_click(prediction, truth, (1.0, 1.0, 1.0)) == Click((2, 13, 13), False)  # of equally deep ones the first
    prediction[1:4, 12:17, 12:15] = False
    click = next_click(prediction, truth, (1.0, 1.0, 1.0))
    assert click is not None
    assert click.inside
    assert click.position[2] == 2


@dataclasses.dataclass
class Painter:
    """A model that paints a ball of radius 2 round each positive click and knows nothing else."""

    asked: list[StructurePrompt] = dataclasses.field(default_factory=list)
    shape: tuple[int, ...] = ()

    def set_crop(self, crop: np.ndarray, modality: str) -> None:
        self.shape = crop.shape

    def segment(self, prompts: Sequence[StructurePrompt], zoom: bool = False) -> Iterator[StructureResult]:
        grid = np.indices(self.shape)
        for prompt in prompts:
            self.asked.append(prompt)
            logits = np.full(self.shape, -1.0, np.float32)
            if prompt.points is not None and prompt.labels is not None:
                for point, label in zip(prompt.points.numpy(), prompt.labels.tolist(), strict=True):
                    near = ((grid - point[:, None, None, None]) ** 2).sum(axis=0) <= 4
                    logits[near] = 1.0 if label else -1.0
            yield StructureResult(prompt.structure, logits, 0, True)


@pytest.fixture
def case(tmp_path: Path) -> PreparedCase:
    dataset = prepare_folder(
        small_folder(tmp_path / "source", 1), tmp_path / "prepared", name="mri", modality=MODALITY,
        labels={1: "prostate", 2: "bladder"}, test_fraction=1.0, val_fraction=0.0,
    )  # fmt: skip
    return dataset.cases("test")[0]


def test_more_clicks_find_more(case: PreparedCase) -> None:
    painter = Painter()
    asked = Asked("m", "d", [Clicks(4)], measures=MeasureSettings())
    records = evaluate_case(painter, case, ["prostate", "bladder"], asked)  # type: ignore[arg-type]
    scores = [r.dice for r in records if r.structure == "prostate"]
    assert scores[0] == 0
    assert scores == sorted(scores)  # type: ignore[type-var]
    origins = [r.prompt_origin for r in records if r.structure == "prostate"]
    assert origins == ["text", "text + 1 oracle click", *(f"text + {n} oracle clicks" for n in (2, 3, 4))]
    last = painter.asked[-2]
    assert last.points is not None
    assert len(last.points) == 4
    truth = case.mask("prostate")
    assert truth[tuple(int(i) for i in last.points[0])]
    alone = [r.prompt_origin for r in evaluate_case(painter, case, ["prostate"], Asked("m", "d", [Clicks(1, False)]))]  # type: ignore[arg-type]
    assert alone == ["1 oracle click"]


def test_boxes_move_by_no_more_than_they_should(case: PreparedCase) -> None:
    truth = case.mask("prostate")
    tight = box_of(truth)
    assert tight is not None
    exact = FromTruth(box=True).prompt("prostate", truth, "c")
    assert exact.box is not None
    np.testing.assert_array_equal(exact.box.numpy(), tight)
    for shift in BOX_SHIFTS[1:]:
        boxes = [FromTruth(box=True, shift=shift, seed=seed).prompt("prostate", truth, "c").box for seed in range(30)]
        moved = np.stack([box.numpy() for box in boxes if box is not None])
        assert np.abs(moved - tight).max() <= shift
        assert (moved[:, 0] <= moved[:, 1]).all()
        assert (moved >= 0).all()
        assert (moved <= np.array(truth.shape) - 1).all()
        assert len(np.unique(moved, axis=0)) > 1
    again = FromTruth(box=True, shift=5).prompt("prostate", truth, "c").box
    same = FromTruth(box=True, shift=5).prompt("prostate", truth, "c").box
    assert again is not None
    assert same is not None
    assert torch.equal(again, same)


def test_points_lie_in_the_truth(case: PreparedCase) -> None:
    truth = case.mask("bladder")
    prompt = FromTruth(text=False, points=5).prompt("bladder", truth, "c")
    assert prompt.points is not None
    assert prompt.labels is not None
    assert all(truth[tuple(int(i) for i in point)] for point in prompt.points)
    assert (prompt.text, prompt.labels.tolist()) == (False, [1] * 5)
    assert FromTruth(text=False, box=True, points=5).origin == "oracle box + 5 oracle points"


def test_every_kind_of_prompt_is_asked_once() -> None:
    origins = ["text", *(q.origin for q in questions_of("prompts")[1:] if isinstance(q, FromTruth))]
    assert len(origins) == len(set(origins)) == 7
    assert {question_of(origin) for origin in origins if not is_oracle(origin)} == {"text"}
    boxes = [q.shift for q in questions_of("boxes") if isinstance(q, FromTruth)]
    assert boxes == [0, 1, 5, 10, 20, 50]


def test_a_token_shows_in_the_origin_and_still_compares(case: PreparedCase) -> None:
    painter = Painter()
    plain = evaluate_case(painter, case, ["prostate", "bladder"], Asked("base", "d", [ByName(), Clicks(2)][:1]))  # type: ignore[arg-type]
    tokens = Asked("adapted", "d", [ByName()], uses_token=lambda modality, name, named: name == "prostate")
    adapted = evaluate_case(painter, case, ["prostate", "bladder"], tokens)  # type: ignore[arg-type]
    fixed = evaluate_case(painter, case, ["prostate", "bladder"], Asked("unet", "d", [FixedOutput()]))  # type: ignore[arg-type]
    assert [r.prompt_origin for r in (*adapted, *fixed)] == ["text + task token", "text", "none", "none"]
    rows = paired_differences([*plain, *adapted, *fixed], "base", "adapted")
    pairs = {(row.structure, row.base_origin, row.adapted_origin) for row in rows if row.structure != "all structures"}
    assert pairs == {("bladder", "text", "text"), ("prostate", "text", "text + task token")}
    against = paired_differences([*plain, *adapted, *fixed], "unet", "adapted")
    assert {(row.base_origin, row.adapted_origin) for row in against} == {
        ("none", "text + task token"), ("none", "text"),
    }  # fmt: skip


def scored(case: str, marked: bool, true: bool, **settings: object) -> Record:
    prediction, truth = np.zeros((4, 6, 6), bool), np.zeros((4, 6, 6), bool)
    prediction[1:3, 1:4, 1:4] = marked
    truth[1:3, 1:4, 2:5] = true
    found = measure(prediction, truth, (3.0, 1.0, 1.0), MeasureSettings(**settings))  # type: ignore[arg-type]
    return Record(
        "m", "d", MODALITY, case, case, "prostate", "text", found.overlap.dice, 1.0, 1.0, extra=found.as_dict()
    )


def test_empty_masks_are_counted_and_never_averaged() -> None:
    records = [scored("a", True, True), scored("b", False, True), scored("c", True, False), scored("d", False, False)]
    counts = count_empty(records)
    assert (counts.cases, counts.missed, counts.false, counts.both) == (4, 1, 1, 1)
    (table,) = measure_tables(records, {})
    row = dict(zip(table.header, table.rows[0], strict=True))
    alone = records[0].extra
    assert (row["HD95, mm"], row["ASSD, mm"]) == (f"{alone['hd95_mm']:.1f}", f"{alone['assd_mm']:.2f}")
    assert row["NSD"] == f"{alone['nsd'] / 3:.3f}"
    assert (row["Cases"], row["Missed"], row["False"], row["Both"]) == ("4", "1", "1", "1")
    lines = {line["measure"]: line for line in csv.DictReader(measures_csv(records).splitlines())}
    assert (lines["hd95_mm"]["cases"], lines["hd95_mm"]["without_value"]) == ("1", "3")
    assert (lines["nsd"]["cases"], lines["nsd"]["without_value"]) == ("3", "1")


def test_other_tolerances_and_surfaces_stand_in_tables_of_their_own() -> None:
    records = [scored("a", True, True), scored("b", True, True, tolerance_mm=1.0)]
    records.append(scored("c", True, True, elements="surfels"))
    notes = [table.note for table in measure_tables(records, {})]
    assert [note.split(". ")[0] for note in notes] == [
        "NSD at 2 mm; surfaces are made of voxels",
        "NSD at 1 mm; surfaces are made of voxels",
        "NSD at 2 mm; surfaces are made of surfels",
    ]
    old = Record("m", "d", MODALITY, "x", "x", "prostate", "text", 0.5, 1.0, 1.0)
    assert measure_tables([old], {}) == []


@pytest.mark.parametrize(("study", "ways"), [("clicks", 3), ("boxes", 7), ("prompts", 7)])
def test_studies_from_the_command_line(tiny_base: SegVol, tmp_path: Path, study: str, ways: int) -> None:
    base, data, out = tmp_path / "base.safetensors", tmp_path / "prepared", tmp_path / "out"
    save_base(base, tiny_base, {"name": "tiny"})
    prepare_folder(
        small_folder(tmp_path / "source", 3), data, name="mri", modality=MODALITY,
        labels={1: "prostate", 2: "bladder"}, test_fraction=1.0, val_fraction=0.0,
    )  # fmt: skip
    done = call("evaluate", "--model", f"base={base}", "--data", data, "--out", out, "--study", study, "--clicks", "2",
                "--surfaces", "surfels", "--device", "cpu")  # fmt: skip
    assert done.code == 0, done.err
    records = read_results(out / "results.jsonl")
    assert len(records) == 3 * 2 * ways
    assert {r.extra["surface_elements"] for r in records} == {"surfels"}
    text = (out / f"{study}.md").read_text(encoding="utf-8")
    for origin in {r.prompt_origin for r in records}:
        assert (f"{origin}, made from the truth" if "oracle" in origin else origin) in text
    page = study_page(study, records, {})  # type: ignore[arg-type]
    assert [figure.title for figure in page.figures] == [MODALITY]
    assert (out / f"{study}.html").read_text(encoding="utf-8").count("<svg") == 0  # figures are inside as data
    assert "image/svg+xml" in (out / f"{study}.html").read_text(encoding="utf-8")


def test_a_study_whose_page_cannot_be_written_can_be_made_again(
    tiny_base: SegVol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores come last: a folder with scores would be refused as that of another evaluation."""
    base, data, out = tmp_path / "base.safetensors", tmp_path / "prepared", tmp_path / "out"
    save_base(base, tiny_base, {"name": "tiny"})
    prepare_folder(
        small_folder(tmp_path / "source", 1), data, name="mri", modality=MODALITY,
        labels={1: "prostate", 2: "bladder"}, test_fraction=1.0, val_fraction=0.0,
    )  # fmt: skip

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "page.html")

    asked = ["evaluate", "--model", f"base={base}", "--data", data, "--out", out, "--study", "clicks", "--clicks", "1",
             "--device", "cpu"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("adaptmedseg.cli.evaluate.write_page", full)
        assert "free some space and run again" in call(*asked).err
    assert call(*asked).code == 0
    assert (out / "clicks.html").is_file()


def test_studies_refuse_what_they_cannot_do(tmp_path: Path) -> None:
    model = ["evaluate", "--model", "base=small", "--data", tmp_path, "--out", tmp_path / "o"]
    for options, words in ((["--study", "dances"], "clicks, boxes, prompts"), (["--surfaces", "skin"], "voxels or")):
        refused = call(*model, *options)
        assert refused.code == 2
        assert words in refused.err
