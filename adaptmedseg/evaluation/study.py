"""A study: several methods asked the same on the same unseen cases, kept in a folder that a report reads."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.normalise import SEGVOL, Normalisation
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.evaluate import OnMask, asked_of, evaluate_case
from adaptmedseg.evaluation.mask_store import MaskStore
from adaptmedseg.evaluation.metrics import MeasureSettings
from adaptmedseg.evaluation.overlays import overlay_png, pick_cases
from adaptmedseg.evaluation.questions import ByName, Question
from adaptmedseg.evaluation.records import Record, read_scores, write_results
from adaptmedseg.inference.loading import BASE_HASH, LoadedModel, check_unseen
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.models.unet import ReferenceUNet

RESULTS, NOTES, OVERLAYS, INDEX = "results.jsonl", "study.json", "overlays", "index.json"
MAX_PICTURES = 30
SHOWN = Normalisation(rule="percentile")  # for pictures of MRI, in which SegVol's rule makes much tissue black
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StudyMethod:
    """A model under the name it has in tables, and how it is asked: `zoom` overrides what it was made for."""

    name: str
    loaded: LoadedModel
    description: str = ""
    questions: Sequence[Question] = (ByName(),)
    zoom: bool | None = None


@dataclass(frozen=True)
class StudyData:
    """A prepared data set and the cases of it to score."""

    dataset: PreparedDataset
    cases: list[PreparedCase]


def study_data(path: Path, split: str, fold: int | None) -> StudyData:
    """The cases to score. UserError where there are none."""
    dataset = PreparedDataset.open(path)
    if split not in ("test", "val"):
        raise UserError(f"--split {split}: choose test or val")
    cases = dataset.cases("val" if split == "val" else "test") if fold is None else dataset.fold(fold)[1]
    if not cases:
        raise UserError(f"{path}: has no {split} case; prepare it with --test-fraction or --folds")
    return StudyData(dataset, cases)


@dataclass
class StudyNotes:
    """What a report says beside the scores; kept as study.json.

    `licences` are those of the models' weights, `asked` the cases asked for by data set, `seeds` those of trainings and
    questions, `versions` the packages that scored. `gate_compared` and `gate_identical` count the cases of modalities
    outside the adapter's on which base and adapted model were compared voxel by voxel.
    """

    methods: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    data: dict[str, dict[str, str]] = field(default_factory=dict)
    gate_on: bool | None = None
    gate_compared: int = 0
    gate_identical: int = 0
    licences: dict[str, str] = field(default_factory=dict)
    asked: dict[str, list[str]] = field(default_factory=dict)
    seeds: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def asked_cases(sources: Sequence[StudyData], structures: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Ids of the cases that were asked for, by data set, so that a report sees which have no score: those that annotate
    one of the structures, or anything."""
    return {
        source.dataset.name: [
            case.id
            for case in source.cases
            if case.annotated and (structures is None or set(structures) & set(case.annotated))
        ]
        for source in sources
    }


def data_notes(sources: Sequence[StudyData]) -> dict[str, dict[str, str]]:
    """What a report says of each data set: origin, licence, number of cases."""
    return {
        source.dataset.name: {
            "origin": str(source.dataset.manifest.get("description") or source.dataset.manifest.get("source") or ""),
            "licence": str(source.dataset.manifest.get("licence") or "not stated"),
            "cases": f"{len(source.dataset.cases())} cases",
        }
        for source in sources
    }


def study_structures(method: StudyMethod, dataset: PreparedDataset, wanted: Sequence[str] | None) -> list[str]:
    """Structures to ask a method for: those of the data set that it was trained on, or that were named."""
    names = [name for name in dataset.structures if wanted is None or name in wanted]
    known = [name for name in names if not method.loaded.structures or name in method.loaded.structures]
    if isinstance(method.loaded.model, ReferenceUNet) and not known:
        raise UserError(
            f"model '{method.name}': has no output for any structure of {dataset.name}; "
            f"it knows {', '.join(method.loaded.structures)}"
        )
    return known or names


def check_study(
    methods: Sequence[StudyMethod], data: Sequence[StudyData], structures: Sequence[str] | None = None
) -> None:
    """UserError where a method was trained on a case or has no output for it, or where data sets share a name."""
    names = [source.dataset.name for source in data]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"two data sets are called '{min(twice)}'; prepare one of them with another --name")
    for method in methods:
        for source in data:
            study_structures(method, source.dataset, structures)
            for case in source.cases:
                check_unseen(
                    method.loaded, method.name, case.sources["image"]["sha256"], f"{source.dataset.name}/{case.id}"
                )


def ask_all(
    methods: Sequence[StudyMethod],
    data: Sequence[StudyData],
    device: torch.device,
    *,
    structures: Sequence[str] | None = None,
    measures: MeasureSettings | None = None,
    on_mask: OnMask | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Scores of every method on every case, with every question; raises as `check_study` does."""
    check_study(methods, data, structures)
    records: list[Record] = []
    total, done = len(methods) * sum(len(source.cases) for source in data), 0
    for method in methods:
        loaded = method.loaded
        segmenter = CropSegmenter(loaded.model.to(device), loaded.size, loaded.resize, device)
        for source in data:
            names = study_structures(method, source.dataset, structures)
            asked = asked_of(
                loaded, method.name, source.dataset.name, method.questions, zoom=method.zoom, measures=measures
            )
            for case in source.cases:
                records += evaluate_case(segmenter, case, names, asked, on_mask)
                done += 1
                if progress is not None:
                    progress(done, total)
    return records


def run_study(
    methods: Sequence[StudyMethod],
    data: Sequence[StudyData],
    device: torch.device,
    *,
    structures: Sequence[str] | None = None,
    measures: MeasureSettings | None = None,
    progress: Progress | None = None,
) -> tuple[list[Record], MaskStore]:
    """As `ask_all`, and all masks."""
    masks = MaskStore()
    records = ask_all(
        methods, data, device, structures=structures, measures=measures, progress=progress,
        on_mask=lambda _case, _structure, mask, record: masks.put(record, mask),
    )  # fmt: skip
    return records, masks


def compare_gated(
    records: Sequence[Record], masks: MaskStore, methods: Sequence[StudyMethod], adapted: StudyMethod, notes: StudyNotes
) -> None:
    """Count the cases outside the adapter's modalities whose masks equal those of its base, voxel for voxel.

    The base is found among `methods` by the hash of its weights; without it nothing is compared.
    """
    model = adapted.loaded.model
    if not isinstance(model, AdaptedSegVol):
        return
    notes.gate_on = adapted.loaded.gated
    weights = adapted.loaded.hashes.get(BASE_HASH)
    bases = [m for m in methods if isinstance(m.loaded.model, SegVol) and m.loaded.hashes.get(BASE_HASH) == weights]
    same: dict[tuple[str, str], bool] = {}
    for record in records if bases else ():
        compared = masks.has(bases[0].name, record) and not model.is_adapted(record.modality)
        if record.method == adapted.name and compared:
            key = (record.dataset, record.case)
            same[key] = same.get(key, True) and masks.same(bases[0].name, adapted.name, record)
    notes.gate_compared += len(same)
    notes.gate_identical += sum(same.values())


def draw_overlays(
    out: Path, records: Sequence[Record], masks: MaskStore, method: str, data: Sequence[StudyData]
) -> None:
    """Pictures of the worst, median and best scores of a method, added to the folder's index that a report reads."""
    cases = {(source.dataset.name, case.id): case for source in data for case in source.cases}
    folder = out / OVERLAYS
    index = read_overlay_index(out)
    for _, record in pick_cases(records, method, MAX_PICTURES):
        case = cases[record.dataset, record.case]
        image = case.image(SEGVOL if case.modality == "CT" else SHOWN)
        png = overlay_png(image, case.mask(record.structure), masks.get(method, record), case.spacing)
        name = f"{len(index):03d}.png"
        write_atomic(folder / name, png)
        index.append({"file": name, "record": asdict(record)})
    write_atomic(folder / INDEX, json.dumps(index, indent=1))


def read_overlay_index(out: Path) -> list[dict]:
    """The pictures of a study folder: file name and the record each shows. UserError where the index is damaged."""
    path = out / OVERLAYS / INDEX
    if not path.exists():
        return []
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        for entry in index:
            (out / OVERLAYS / entry["file"], Record(**entry["record"]))
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{path}: is damaged; run the evaluation again, or delete {path.parent} for a report without pictures"
        ) from None
    return list(index)


def save_study(out: Path, records: Sequence[Record], notes: StudyNotes, *, append: bool = False) -> None:
    """Write scores and notes; with `append`, beside those of earlier calls (other folds or methods).

    A score that an earlier call gave to the same method, case and structure is replaced.
    """
    previous = read_scores(out / RESULTS) if append and (out / RESULTS).exists() else []
    if (out / RESULTS).exists() and not append:
        raise UserError(f"{out}: holds another evaluation; choose a new --out, or add to it with --append")
    old = read_notes(out) if previous else StudyNotes()
    merged = StudyNotes(
        methods=old.methods | notes.methods,
        hashes=_joined(old.hashes, notes.hashes),
        data=old.data | notes.data,
        licences=old.licences | notes.licences,
        asked={
            name: list(dict.fromkeys([*old.asked.get(name, ()), *notes.asked.get(name, ())]))
            for name in (*old.asked, *notes.asked)
        },
        seeds=_joined(old.seeds, notes.seeds),
        versions=_joined(old.versions, notes.versions),
        gate_on=notes.gate_on if notes.gate_on is not None else old.gate_on,
        gate_compared=old.gate_compared + notes.gate_compared,
        gate_identical=old.gate_identical + notes.gate_identical,
    )
    new = {record.score_key for record in records}
    kept = [record for record in previous if record.score_key not in new]
    splits = {record.split for record in (*kept, *records)}
    if len(splits) > 1:
        raise UserError(f"{out}: would hold scores of several splits ({', '.join(sorted(splits))}); choose a new --out")
    write_atomic(out / NOTES, json.dumps(asdict(merged), indent=1))
    write_results(out / RESULTS, [*kept, *records])


def _joined(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """Both tables; where a name has several values, as one method's models of several folds, all of them."""
    joined = old | new
    for name in old.keys() & new.keys():
        joined[name] = ", ".join(dict.fromkeys([*old[name].split(", "), new[name]]))
    return joined


def read_notes(out: Path) -> StudyNotes:
    """The notes of a study folder. UserError where there is none."""
    try:
        return StudyNotes(**json.loads((out / NOTES).read_text(encoding="utf-8")))
    except (OSError, TypeError, json.JSONDecodeError):
        raise UserError(f"{out / NOTES}: missing or damaged; run `adaptmedseg evaluate` again") from None
