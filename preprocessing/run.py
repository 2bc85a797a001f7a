"""From found cases to a prepared data set: read, check, normalise and store each, whatever set it comes from."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adaptmedseg.preprocessing.case import Reader, SourceCase
from adaptmedseg.preprocessing.reading import source_record
from adaptmedseg.preprocessing.resume import Unfinished, case_key
from adaptmedseg.preprocessing.split import Partition, description, divide

from adaptmedseg.data.files import file_sha256
from adaptmedseg.data.labelled import Absent, annotated_structures
from adaptmedseg.data.labels import LabelScheme
from adaptmedseg.data.prepared import VERSION, PreparedDataset, write_case, write_prepared
from adaptmedseg.data.registry import default_registry
from adaptmedseg.data.source import voxel_file
from adaptmedseg.errors import UserError

Progress = Callable[[int, int], None]
_Kept = tuple[SourceCase, dict[str, Any]]
_SHOWN = 10
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Plan:
    """What is to be prepared, known before any voxel is read.

    `source` is what the user named and `root` the folder that it was opened to, which source paths are relative to.
    `name` is the data set's, `new_structures` are those that its user added to the registry, `facts` are further
    entries of the manifest. `problems` are sentences on what had to be left out so far, `reader` reads a case.
    """

    name: str
    cases: Sequence[SourceCase]
    problems: Sequence[str]
    source: Path
    root: Path
    scheme: LabelScheme
    absent: Absent
    reader: Reader
    partition: Partition
    new_structures: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Result:
    """A case's manifest entry, or the sentence that says why it is left out."""

    case: SourceCase
    entry: dict[str, Any] | None
    problem: str | None = None


def prepare_plan(
    out: Path,
    open_plan: Callable[[Unfinished], AbstractContextManager[Plan]],
    *,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> PreparedDataset:
    """Prepare all cases of a plan.

    A bad case does not stop the others: it is left out, and the manifest says so under ``left_out``. A run that is
    interrupted, or stopped by a full disk, keeps its finished cases in ``OUT.unfinished``; the next run goes on from
    there, and the result has the same bytes.

    Args:
        out: the new prepared folder; it appears complete or not at all.
        open_plan: a context manager that is given the place for unfinished work and yields the `Plan`.
        overwrite: replace a prepared data set in `out`.
        workers: threads that prepare cases side by side.
        progress: called with (cases done, cases in all).

    Raises:
        UserError: the source as a whole cannot be used, no case is left, or the disk is full.
    """
    unfinished = Unfinished(out)

    begun = False  # until then another run may own the unfinished work

    def write_cases(partial: Path) -> dict[str, Any]:
        nonlocal begun
        begun = True
        with open_plan(unfinished) as plan, _telling_of_a_full_disk(out, unfinished):
            plan, repeated = _told_apart(plan)
            division = divide(plan.cases, plan.partition) if plan.cases else {}
            results = _run(plan, unfinished, workers, progress)
            kept, left_out = _sort_out(results, [*plan.problems, *repeated])
        unfinished.hand_over([case.id for case, _ in kept], partial / "cases")
        return _manifest(plan, kept, left_out, division)

    try:
        dataset = write_prepared(out, write_cases, overwrite=overwrite)
    except BaseException:
        if begun:
            unfinished.close(keep=True)
        raise
    unfinished.close(keep=False)
    return dataset


def _manifest(
    plan: Plan, kept: list[_Kept], left_out: Sequence[str], division: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What the manifest says of the set and of its cases."""
    entries = []
    for case, entry in kept:
        place = {"site": case.site, "modality": case.modality, "contrast": case.contrast}
        entries.append({"id": case.id, **entry, **division[case.id], **place})
    shipped, scheme = default_registry(), plan.scheme
    registry = shipped.extended({name: {} for name in plan.new_structures})
    own = [name for name in plan.new_structures if not shipped.knows_structure(name)]
    return {
        "name": plan.name,
        "source": plan.source.name,
        "structures": list(scheme.structures),
        "label_values": {structure: list(values) for structure, values in scheme.values.items()},
        "extra_structures": {name: {} for name in own if registry.structure(name).name in scheme.structures},
        "absent": plan.absent,
        **plan.facts,
        "division": description(plan.cases, plan.partition),
        "folds": len({place["fold"] for place in division.values()} - {None}) or None,
        "modalities": list(dict.fromkeys(entry["modality"] for entry in entries)),
        "left_out": [problem.replace(str(plan.root), plan.source.name) for problem in left_out],
        "cases": entries,
    }


def _told_apart(plan: Plan) -> tuple[Plan, list[str]]:
    """The plan without cases that share a name, and a sentence for each such name."""
    by_id: dict[str, list[SourceCase]] = defaultdict(list)
    for case in plan.cases:
        by_id[case.id].append(case)
    repeated = [
        f"The cases {' and '.join(str(case.image) for case in cases)} are all called {name}; keep or rename one."
        for name, cases in by_id.items()
        if len(cases) > 1
    ]
    return replace(plan, cases=[case for case in plan.cases if len(by_id[case.id]) == 1]), repeated


@contextmanager
def _telling_of_a_full_disk(out: Path, unfinished: Unfinished) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not _is_full(error):
            raise
        why = "the disk is full or a limit on sizes is reached"
        done = unfinished.count()
        kept = f"; the {done} finished cases are kept in {unfinished.folder.name} and used then" if done else ""
        raise UserError(f"{out} could not be written because {why}; free some space and run again{kept}.") from error


def _is_full(error: OSError) -> bool:
    """Whether there was no room to write; numpy says so without an error number."""
    return error.errno in _FULL or (error.errno is None and "requested and" in str(error))


def _run(plan: Plan, unfinished: Unfinished, workers: int, progress: Progress | None) -> list[_Result]:
    """Prepare every case, in the plan's order. Reading and normalising release the interpreter: threads suffice."""
    results: list[_Result] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        futures = [pool.submit(_prepare, plan, case, unfinished) for case in plan.cases]
        try:
            for done, future in enumerate(futures, start=1):
                results.append(future.result())
                if progress is not None:
                    progress(done, len(futures))
        finally:
            pool.shutdown(cancel_futures=True)
    return results


def _prepare(plan: Plan, case: SourceCase, unfinished: Unfinished) -> _Result:
    """Read, check and store one case, or take what an earlier run made of the same files in the same way."""
    try:
        sources = {"image": source_record(case.image, plan.root), "label": source_record(case.label, plan.root)}
        key = case_key(
            {
                "format": VERSION,
                "sources": sources,
                "labels": list(plan.scheme.values.items()),  # in the order of bits
                "dropped": plan.scheme.dropped,
                "parts": plan.scheme.derived,
                "headers": [_header(case.image), _header(case.label)],
                "absent": plan.absent,
                "reader": f"{plan.reader.__module__}.{plan.reader.__qualname__}",
                "channel": case.channel,
                "spacing": case.spacing,
            }
        )
        entry = unfinished.finished(case.id, key)
        if entry is None:
            entry = unfinished.write(case.id, key, lambda folder: _store(plan, case, folder, sources))
    except UserError as error:
        return _Result(case, None, str(error))
    except OSError as error:
        if _is_full(error) or error.filename is None:
            raise
        return _Result(case, None, f"{error.filename} cannot be read ({error.strerror}); check it and run again.")
    return _Result(case, entry)


def _header(path: Path) -> str | None:
    """The hash of a header that lies beside its voxels, which `source_record` leaves out; None for other formats."""
    return None if path.is_dir() or voxel_file(path) == path else file_sha256(path)


def _store(plan: Plan, case: SourceCase, folder: Path, sources: dict[str, Any]) -> dict[str, Any]:
    """Read one case and write its arrays; returns its manifest entry."""
    data = plan.reader(case, plan.scheme)
    voxels = plan.scheme.voxels(data.counts)
    annotated = [
        name
        for name in annotated_structures(voxels, plan.absent)
        if plan.absent == "empty" or plan.scheme.has_all_parts(name, data.counts)
    ]
    if not annotated:
        raise UserError(
            f"{case.label} is empty, so that the case annotates nothing; leave it out, or assert that empty means "
            "absent with --absent empty."
        )
    geometry = write_case(folder, data.image, data.bits, plan.scheme.structures)
    return {
        "sources": sources,
        **geometry,
        "spacing_stated": data.spacing_stated,
        "notes": list(data.notes),
        "annotated": annotated,
        "voxels": voxels,
    }


def _sort_out(results: list[_Result], problems: list[str]) -> tuple[list[_Kept], list[str]]:
    """The good cases, and a sentence for each that is left out. UserError where none is good."""
    problems += [result.problem for result in results if result.problem is not None]
    good = [(result.case, result.entry) for result in results if result.entry is not None]
    by_image: dict[str, list[SourceCase]] = defaultdict(list)
    kept = []
    for case, entry in good:
        same = by_image[entry["sources"]["image"]["sha256"]]
        if any(other.patient != case.patient for other in same):
            # One image under two patients' names would put a patient on both sides of a split.
            problems.append(f"The cases {same[0].id}, {case.id} are one and the same image; {case.id} is left out.")
            continue
        same.append(case)
        kept.append((case, entry))
    if not kept:
        raise UserError(summarise(problems or ["No case was found; check the source."]))
    return kept, problems


def summarise(problems: Sequence[str]) -> str:
    """The first problem as a sentence, and the others as a list below it."""
    if len(problems) == 1:
        return problems[0]
    lines = [problems[0], f"And {len(problems) - 1} more:"]
    lines += [f"  {problem}" for problem in problems[1:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  ... {len(problems) - _SHOWN} not shown; 'adaptmedseg check' lists every case.")
    return "\n".join(lines)
