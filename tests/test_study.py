"""Studies: who is compared with whom, what counts as a leak, and what stays on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from adaptmedseg.preprocessing.folder import prepare_folder
from small_cases import MODALITY, small_folder

from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.mask_store import MaskStore
from adaptmedseg.evaluation.records import Record, read_results
from adaptmedseg.evaluation.study import (
    StudyData,
    StudyMethod,
    StudyNotes,
    compare_gated,
    draw_overlays,
    read_notes,
    read_overlay_index,
    run_study,
    save_study,
)
from adaptmedseg.evaluation.study_report import ReportText, report_study
from adaptmedseg.inference.loading import BASE_HASH, LoadedModel
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, LayerAdapterConfig, PriorsConfig
from adaptmedseg.models.segvol import SegVol, SegVolConfig

CPU = torch.device("cpu")
LABELS = {1: "prostate", 2: "bladder"}


def loaded(model: SegVol | AdaptedSegVol, seen: frozenset[str] = frozenset()) -> LoadedModel:
    config = model.base.config if isinstance(model, AdaptedSegVol) else model.config
    return LoadedModel(model.eval(), config.spatial_size, config.resize, [], seen, {BASE_HASH: "abc"}, "tiny")


def adapted(config: SegVolConfig, *, gate: bool) -> AdaptedSegVol:
    """The tiny base with an adapter that changes every mask of the images it is for."""
    torch.manual_seed(0)
    base = SegVol(config)
    torch.manual_seed(1)
    settings = AdapterConfig(
        layers=[LayerAdapterConfig(rank=2, alpha=2)],
        priors=PriorsConfig(blocks=1, modality_tokens=2),
        gate_by_modality=gate,
    )
    model = AdaptedSegVol(base, settings, ["prostate", "bladder"], [MODALITY])
    with torch.no_grad():
        for tensor in model.trained_tensors().values():
            tensor.add_(0.5 * torch.randn(tensor.shape))
    return model


@pytest.fixture
def data(tmp_path: Path) -> list[StudyData]:
    """Two MRI and two CT cases."""
    found = []
    for name, modality in (("mri", MODALITY), ("ct", "CT")):
        source = small_folder(tmp_path / name, 2)
        dataset = prepare_folder(
            source, tmp_path / "prepared" / name, name=name, modality=modality, labels=LABELS,
            test_fraction=1.0, val_fraction=0.0,
        )  # fmt: skip
        found.append(StudyData(dataset, dataset.cases("test")))
    return found


def test_a_whole_set_can_be_for_testing(data: list[StudyData]) -> None:
    assert [len(source.cases) for source in data] == [2, 2]


@pytest.mark.parametrize("gate", [True, False])
def test_the_gate_is_checked_on_masks(
    tiny_base: SegVol, tiny_config: SegVolConfig, data: list[StudyData], gate: bool
) -> None:
    methods = [
        StudyMethod("base", loaded(tiny_base)),
        StudyMethod("adapted", loaded(adapted(tiny_config, gate=gate))),
    ]
    steps: list[tuple[int, int]] = []
    records, masks = run_study(methods, data, CPU, progress=lambda *at: steps.append(at))
    assert steps == [(i, 8) for i in range(1, 9)]
    assert len(records) == 16
    notes = StudyNotes()
    compare_gated(records, masks, methods, methods[1], notes)
    assert (notes.gate_on, notes.gate_compared, notes.gate_identical) == (gate, 2 * gate, 2 * gate)
    stranger = dataclasses.replace(methods[0], loaded=dataclasses.replace(methods[0].loaded, hashes={}))
    other = StudyNotes()
    compare_gated(records, masks, [stranger, methods[1]], methods[1], other)
    assert (other.gate_on, other.gate_compared) == (gate, 0)  # another model is no base to compare with
    different = [r for r in records if r.method == "base" and not masks.same("base", "adapted", r)]
    assert {r.modality for r in different} == ({MODALITY} if gate else {MODALITY, "CT"})


def test_masks_in_memory_come_back(data: list[StudyData], tiny_base: SegVol) -> None:
    records, masks = run_study([StudyMethod("base", loaded(tiny_base))], data[:1], CPU, structures=["bladder"])
    assert {record.structure for record in records} == {"bladder"}
    case = data[0].cases[0]
    mask = masks.get("base", records[0])
    assert mask.shape == case.shape
    truth = case.mask("bladder")
    assert records[0].dice == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    store = MaskStore()
    odd = np.random.default_rng(0).random((3, 5, 7)) > 0.5
    store.put(records[0], odd)
    np.testing.assert_array_equal(store.get("base", records[0]), odd)


def test_a_model_is_not_scored_on_what_it_saw(data: list[StudyData], tiny_base: SegVol) -> None:
    seen = frozenset([data[1].cases[1].sources["image"]["sha256"]])
    # The CT and MRI folders hold the same files, so one image is seen under either name.
    for sources in (data, data[:1]):
        with pytest.raises(UserError, match="'base' was trained on this image"):
            run_study([StudyMethod("base", loaded(tiny_base, seen))], sources, CPU)


def records_of(method: str, cases: int = 2, **changes: object) -> list[Record]:
    plain = Record(method, "d", MODALITY, "c", "p", "prostate", "text", 0.5, 1.0, 1.0)
    return [
        dataclasses.replace(plain, **({"case": f"c{i}", "patient": f"p{i}"} | changes))  # type: ignore[arg-type]
        for i in range(cases)
    ]


def test_later_scores_join_or_replace_earlier_ones(tmp_path: Path) -> None:
    out = tmp_path / "study"
    first = StudyNotes(methods={"a": "first"}, hashes={"a": "1"}, gate_on=True, gate_compared=2)
    save_study(out, records_of("a"), first)
    with pytest.raises(UserError, match="--append"):
        save_study(out, records_of("b"), StudyNotes())
    save_study(out, records_of("b"), StudyNotes(methods={"b": "second"}, gate_compared=1), append=True)
    save_study(out, records_of("a", 1, dice=0.75), StudyNotes(hashes={"a": "2"}), append=True)
    save_study(out, records_of("a", prompt_origin="oracle box"), StudyNotes(), append=True)
    found = [(r.method, r.case, r.prompt_origin, r.dice) for r in read_results(out / "results.jsonl")]
    assert found == [
        ("a", "c1", "text", 0.5),
        ("b", "c0", "text", 0.5),
        ("b", "c1", "text", 0.5),
        ("a", "c0", "text", 0.75),
        ("a", "c0", "oracle box", 0.5),
        ("a", "c1", "oracle box", 0.5),
    ]
    notes = read_notes(out)
    assert notes.hashes == {"a": "1, 2"}
    assert (notes.methods, notes.gate_on, notes.gate_compared) == ({"a": "first", "b": "second"}, True, 3)
    with pytest.raises(UserError, match="several splits"):
        save_study(out, records_of("c", split="val"), StudyNotes(), append=True)


@pytest.mark.parametrize(("base_weights", "told"), [("w", True), ("v", False)])
def test_a_report_speaks_of_the_gate_only_beside_the_adapters_own_base(
    tmp_path: Path, base_weights: str, told: bool
) -> None:
    records = records_of("other", modality="CT") + records_of("adapted", modality="CT", dice=0.75)
    hashes = {f"other, {BASE_HASH}": base_weights, f"adapted, {BASE_HASH}": "w"}
    save_study(tmp_path, records, StudyNotes(hashes=hashes, gate_on=True, gate_compared=2, gate_identical=2))
    text = report_study(tmp_path, tmp_path, ReportText("x")).markdown.read_text(encoding="utf-8")
    assert ("modality gate" in text) == told


def test_a_damaged_study_is_told(tmp_path: Path) -> None:
    save_study(tmp_path, records_of("a"), StudyNotes())
    for text in ("{", '{"methods": {}, "speed": 1}'):
        (tmp_path / "study.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"study\.json: missing or damaged"):
            report_study(tmp_path, tmp_path, ReportText("x"))
    with pytest.raises(UserError, match="no results file"):
        report_study(tmp_path / "none", tmp_path, ReportText("x"))


@pytest.mark.parametrize(
    "text", ["[{", '{"a": 1}', '[{"file": "a.png"}]', '[{"file": "a.png", "record": {"dice": 1}}]']
)
def test_a_damaged_index_of_pictures_is_told(tmp_path: Path, text: str) -> None:
    save_study(tmp_path, records_of("a"), StudyNotes())
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "index.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"index\.json: is damaged; .* or delete .*overlays for a report"):
        report_study(tmp_path, tmp_path, ReportText("x"))


def test_scores_of_two_splits_make_no_report(tmp_path: Path) -> None:
    save_study(tmp_path, records_of("a"), StudyNotes())
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    lines.append(lines[0].replace('"test"', '"val"').replace('"method": "a"', '"method": "b"'))
    (tmp_path / "results.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="mixes the splits test, val; evaluate each into its own folder"):
        report_study(tmp_path, tmp_path, ReportText("x"))


def test_pictures_and_report_of_a_study(data: list[StudyData], tiny_base: SegVol, tmp_path: Path) -> None:
    out = tmp_path / "study"
    methods = [StudyMethod("base", loaded(tiny_base), "the tiny base")]
    records, masks = run_study(methods, data, CPU)
    draw_overlays(out, records, masks, "base", data)
    save_study(out, records, StudyNotes(methods={"base": "the tiny base"}))
    index = read_overlay_index(out)
    assert len(index) == 8  # worst and best of two modalities and two structures
    assert {path.name for path in (out / "overlays").iterdir()} == {"index.json", *(entry["file"] for entry in index)}
    draw_overlays(out, records, masks, "base", data)  # as a second call with --append does
    assert len({entry["file"] for entry in read_overlay_index(out)}) == 16
    paths = report_study(out, tmp_path / "report", ReportText("A study"))
    text = paths.markdown.read_text(encoding="utf-8")
    assert "there is nothing to compare it with" in text
    assert len(list(paths.files.glob("*.png"))) == 8


def test_two_sets_of_one_name_would_be_confused(data: list[StudyData], tiny_base: SegVol) -> None:
    manifest = json.loads((data[1].dataset.folder / "manifest.json").read_text(encoding="utf-8"))
    (data[1].dataset.folder / "manifest.json").write_text(json.dumps({**manifest, "name": "mri"}), encoding="utf-8")
    same = PreparedDataset.open(data[1].dataset.folder)
    with pytest.raises(UserError, match="two data sets are called 'mri'"):
        run_study([StudyMethod("base", loaded(tiny_base))], [data[0], StudyData(same, same.cases())], CPU)
