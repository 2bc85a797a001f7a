"""From a folder (or .zip) of images and labels to a prepared data set, in one call."""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from adaptmedseg.preprocessing.split import fold_patients, patient_of, split_patients

from adaptmedseg.data.archive import opened_source
from adaptmedseg.data.discover import Found, Pair, find_pairs
from adaptmedseg.data.labelled import Absent, annotated_structures, modality_of, read_labelled
from adaptmedseg.data.labels import LabelNames, LabelScheme, label_scheme
from adaptmedseg.data.prepared import PreparedDataset, file_sha256, write_case, write_prepared
from adaptmedseg.data.registry import Registry, default_registry
from adaptmedseg.errors import UserError

Progress = Callable[[int, int], None]
_SHOWN = 10


@dataclass(frozen=True)
class _Job:
    """Everything a worker needs for one case."""

    pair: Pair
    root: Path
    folder: Path
    scheme: LabelScheme
    absent: Absent


@dataclass(frozen=True)
class _Result:
    """A case's manifest entry, or the sentence that says why it is bad."""

    entry: dict[str, Any] | None
    problem: str | None


@dataclass(frozen=True)
class _Partition:
    """How patients are told apart and divided."""

    test_fraction: float
    val_fraction: float
    folds: int | None
    seed: int
    patient_pattern: str | None


def prepare_folder(
    source: str | Path,
    out: str | Path,
    *,
    name: str,
    modality: str | None = None,
    labels: LabelNames | None = None,
    images: Path | None = None,
    label_folder: Path | None = None,
    channel: int | None = None,
    site: str | None = None,
    new_structures: Sequence[str] = (),
    absent: Absent = "unannotated",
    test_fraction: float = 0.2,
    val_fraction: float = 0.1,
    folds: int | None = None,
    seed: int = 0,
    patient_pattern: str | None = None,
    skip_unlabelled: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> PreparedDataset:
    """Find, check, normalise and store the cases of a user's folder.

    Args:
        source: a folder or .zip in one of the layouts of `adaptmedseg.data.discover`.
        out: the new prepared folder; it appears complete or not at all.
        name: the data set's name.
        modality: a registry name; None takes the one that dataset.json gives for the channel.
        labels: label values to structure names, ``{1: "liver", "1+2": "prostate"}``; they extend and override those of
            a dataset.json. The name ``background`` drops a value.
        images, label_folder: two folders instead of a known layout.
        channel: the channel of 4D images, from 0.
        site: one site for all cases; None takes the site's folder where there is one.
        new_structures: names to add to the registry for this data set.
        absent: what a structure without a voxel means in a case: 'unannotated' (unknown there, the default) or 'empty'
            (the set annotates every structure in every case).
        test_fraction, val_fraction: shares of the patients; unused with `folds`.
        folds: number of cross-validation folds; the test split is then fold 0, the rest trains.
        seed: of splits and folds, which depend on it and on the patients' names, not on the order of files.
        patient_pattern: see `adaptmedseg.preprocessing.split.patient_of`.
        skip_unlabelled: leave out images without labels instead of reporting them.
        overwrite: replace a prepared data set in `out`.
        workers: processes; 1 works in this one.
        progress: called with (cases done, cases in all).

    Raises:
        UserError: anything about the input; all bad cases are found first and nothing is left in `out`.
    """
    source = Path(source)
    if absent not in get_args(Absent):
        raise UserError(f"The meaning of an absent structure is {absent!r}; choose {' or '.join(get_args(Absent))}.")
    extra: dict[str, dict[str, Any]] = {new: {} for new in new_structures}
    registry = default_registry().extended(extra)
    partition = _Partition(test_fraction, val_fraction, folds, seed, patient_pattern)

    def write_cases(partial: Path) -> dict[str, Any]:
        with opened_source(source) as opened:
            found = find_pairs(
                opened, images=images, labels=label_folder, channel=channel, skip_unlabelled=skip_unlabelled
            )
            scheme = label_scheme(labels or {}, found.description.get("labels"), registry)
            kind = modality_of(modality, found.description, channel, registry).name
            # Files without a partner make `_run` raise, and may be why patients are too few to divide.
            divided = {} if found.problems else _divide([pair.id for pair in found.pairs], partition)
            jobs = [_Job(pair, opened, partial / "cases" / pair.id, scheme, absent) for pair in found.pairs]
            entries = _run(jobs, found, workers, progress)
        for entry in entries:
            place = entry.pop("folder_site") if site is None else site
            entry.update(divided[entry["id"]], site=place, modality=kind)
        _refuse_duplicates(entries)
        return {
            "name": name,
            "source": source.name,
            "modalities": [kind],
            "structures": list(scheme.structures),
            "label_values": {structure: list(values) for structure, values in scheme.values.items()},
            "extra_structures": _only_used(extra, scheme, registry),
            "absent": absent,
            "channel": channel,
            "seed": seed,
            "folds": folds,
            "cases": entries,
        }

    return write_prepared(out, write_cases, overwrite=overwrite)


def _divide(ids: Iterable[str], partition: _Partition) -> dict[str, dict[str, Any]]:
    """Patient, split and fold of every case."""
    patients = {case: patient_of(case, partition.patient_pattern) for case in ids}
    if partition.folds is not None:
        fold = fold_patients(patients.values(), folds=partition.folds, seed=partition.seed)
        return {
            case: {"patient": patient, "split": "train" if fold[patient] else "test", "fold": fold[patient]}
            for case, patient in patients.items()
        }
    split = split_patients(
        patients.values(),
        test_fraction=partition.test_fraction,
        val_fraction=partition.val_fraction,
        seed=partition.seed,
    )
    return {case: {"patient": patient, "split": split[patient], "fold": None} for case, patient in patients.items()}


def _run(jobs: list[_Job], found: Found, workers: int, progress: Progress | None) -> list[dict[str, Any]]:
    """Prepare every case; raise one error that lists all bad ones."""
    entries, problems = [], list(found.problems)
    for done, result in enumerate(_results(jobs, workers), start=1):
        if result.entry is not None:
            entries.append(result.entry)
        if result.problem is not None:
            problems.append(result.problem)
        if progress is not None:
            progress(done, len(jobs))
    if problems:
        raise UserError(summarise(problems))
    return entries


def _results(jobs: list[_Job], workers: int) -> Iterator[_Result]:
    if workers <= 1:
        yield from map(_prepare, jobs)
        return
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_prepare, jobs)
    except BrokenProcessPool as error:
        raise UserError(f"A worker was stopped, most likely for memory; try fewer than {workers} workers.") from error


def summarise(problems: Sequence[str]) -> str:
    """The first problem as a sentence, and the others as a list below it."""
    if len(problems) == 1:
        return problems[0]
    lines = [problems[0], f"And {len(problems) - 1} more:"]
    lines += [f"  {problem}" for problem in problems[1:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  ... {len(problems) - _SHOWN} not shown; 'adaptmedseg check' lists every case.")
    return "\n".join(lines)


def _prepare(job: _Job) -> _Result:
    """Read, check and store one case."""
    try:
        case = read_labelled(job.pair, job.scheme, job.absent)
        geometry = write_case(job.folder, case.image, job.scheme.bit_mask(case.labels.data), job.scheme.structures)
    except UserError as error:
        return _Result(None, str(error))
    voxels = job.scheme.voxels(case.counts)
    entry = {
        "id": job.pair.id,
        "folder_site": job.pair.site,
        "sources": {"image": _source(job.pair.image, job.root), "label": _source(job.pair.label, job.root)},
        **geometry,
        "annotated": list(annotated_structures(voxels, job.absent)),
        "voxels": voxels,
    }
    return _Result(entry, None)


def _source(path: Path, root: Path) -> dict[str, str]:
    """A source file relative to the source folder, and the SHA-256 of its bytes."""
    relative = path.relative_to(root) if path.is_relative_to(root) else Path(path.parent.name, path.name)
    return {"path": relative.as_posix(), "sha256": file_sha256(path)}


def _refuse_duplicates(entries: Sequence[dict[str, Any]]) -> None:
    """One image under two patients' names would put a patient on both sides of a split."""
    patients: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in entries:
        patients[entry["sources"]["image"]["sha256"]][entry["patient"]] = entry["id"]
    for cases in patients.values():
        if len(cases) > 1:
            raise UserError(f"The cases {', '.join(cases.values())} are one and the same image file; keep one of them.")


def _only_used(extra: dict[str, dict[str, Any]], scheme: LabelScheme, registry: Registry) -> dict[str, dict[str, Any]]:
    """The new structures that labels use and the shipped registry lacks."""
    own = {name: fields for name, fields in extra.items() if not default_registry().knows_structure(name)}
    return {name: fields for name, fields in own.items() if registry.structure(name).name in scheme.structures}
