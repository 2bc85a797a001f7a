"""From a published data set, by name, to a prepared one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from adaptmedseg.preprocessing.case import Cases, SourceCase
from adaptmedseg.preprocessing.committed import committed_lists
from adaptmedseg.preprocessing.fetch import by_hand
from adaptmedseg.preprocessing.resume import Unfinished
from adaptmedseg.preprocessing.run import Plan, Progress, prepare_plan
from adaptmedseg.preprocessing.sets import KNOWN
from adaptmedseg.preprocessing.sets.model import DataSet
from adaptmedseg.preprocessing.split import Partition

from adaptmedseg.data.archive import is_archive, naming_archive, opened_source, unpack
from adaptmedseg.data.labelled import Absent
from adaptmedseg.data.labels import LabelNames, LabelScheme, label_scheme, scheme_of
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.data.registry import Registry, default_registry
from adaptmedseg.errors import UserError

Spacing = tuple[float, float, float]


def known_set(name: str) -> DataSet:
    """The published set called `name`. Raises UserError with the known names."""
    if name not in KNOWN:
        raise UserError(f"Unknown data set {name!r}; the known ones are {', '.join(KNOWN)}.")
    return KNOWN[name]


def prepare_set(
    name: str,
    source: str | Path,
    out: str | Path,
    *,
    target: str | None = None,
    contrasts: Sequence[str] | None = None,
    spacing: Spacing | None = None,
    labels: LabelNames | None = None,
    new_structures: Sequence[str] = (),
    absent: Absent | None = None,
    partition: Partition | None = None,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> PreparedDataset:
    """Find, check, normalise and store the cases of a published set.

    Args:
        name: one of `adaptmedseg.preprocessing.sets.KNOWN`.
        source: the set's folder, its archive, or a folder that holds its archives.
        out: the new prepared folder; it appears complete or not at all.
        target: what to annotate, where the set gives a choice; None takes its first.
        contrasts: which images of a patient, where the set has several; None takes the set's default.
        spacing: voxel sizes (d, h, w) in mm, for sets whose files state none.
        labels: names of label values, for sets that name them in their own description.
        new_structures: names to add to the registry, for such sets.
        absent: what a structure without a voxel means; None takes what is known of the set.
        partition: how patients are divided; None takes the committed list, else the publisher's split, else shares.
        overwrite, workers, progress: as `adaptmedseg.preprocessing.run.prepare_plan`.

    Raises:
        UserError: an option does not fit the set, the source is not the set, or no case is good.
    """
    known = known_set(name)
    chosen = _chosen_target(known, target)
    wanted = _chosen_contrasts(known, contrasts)
    if spacing is not None and known.spacing_stated:
        raise UserError(f"The files of {name} state their spacing; leave --spacing out.")
    if (labels or new_structures) and known.labels:
        raise UserError(f"The labels of {name} are known; leave --label and --new-structure out.")
    registry = default_registry().extended({new: {} for new in new_structures})
    source = Path(source)
    meaning = absent or known.absent
    if meaning not in get_args(Absent):
        raise UserError(f"The meaning of an absent structure is {absent!r}; choose {' or '.join(get_args(Absent))}.")

    @contextmanager
    def open_plan(unfinished: Unfinished) -> Iterator[Plan]:
        with _opened(known, source, unfinished, workers) as root:
            found = known.find(root, chosen)
            cases = _chosen_cases(known, source, found, wanted, spacing)
            scheme = _scheme(known, chosen, found, labels or {}, registry)
            yield Plan(
                name=known.name,
                cases=cases,
                problems=found.problems,
                source=source,
                root=root,
                scheme=scheme,
                absent=meaning,
                reader=known.read,
                partition=partition or committed_lists(name),
                new_structures=new_structures,
                facts=_facts(known, chosen, found),
            )

    return prepare_plan(Path(out), open_plan, overwrite=overwrite, workers=workers, progress=progress)


def _facts(known: DataSet, target: str, found: Cases) -> dict[str, Any]:
    """What the manifest of a published set says beside that of any other."""
    return {
        "description": known.title,
        "publisher": known.page,
        "licence": found.licence or known.stated_licence,
        "target": target,
        "notes": found.notes,
    }


def _chosen_target(known: DataSet, target: str | None) -> str:
    choices = list(known.targets) or ["all"]
    if target is None:
        return choices[0]
    if target not in choices:
        raise UserError(f"{known.name} has no target {target!r}; choose {' or '.join(choices)}.")
    return target


def _chosen_contrasts(known: DataSet, contrasts: Sequence[str] | None) -> tuple[str, ...]:
    """The contrasts to prepare; empty takes all."""
    if contrasts is None:
        return known.default_contrasts
    if not known.contrasts and known.labels:
        raise UserError(f"{known.name} has one image a case; leave --channel out.")
    wanted = tuple(contrast.strip().lower() for contrast in contrasts)
    if wanted == ("all",):
        return ()
    unknown = known.contrasts and [contrast for contrast in wanted if contrast not in known.contrasts]
    if unknown:
        raise UserError(f"{known.name} has no channel {unknown[0]!r}; choose of {', '.join(known.contrasts)}, or all.")
    return wanted


def _chosen_cases(
    known: DataSet, source: Path, found: Cases, wanted: tuple[str, ...], spacing: Spacing | None
) -> list[SourceCase]:
    """The found cases of the wanted contrasts. UserError where nothing was found, or none is of these."""
    if not found.cases and not found.problems:
        raise UserError(f"{source} holds no case of {known.name}; {by_hand(known)}.")
    cases = [replace(case, spacing=spacing) for case in found.cases if _is_wanted(case.contrast, wanted)]
    if found.cases and not cases:
        there = ", ".join(sorted({case.contrast or "" for case in found.cases}))
        raise UserError(f"{source} has no channel {wanted[0]!r}; choose of {there}, or all.")
    return cases


def _is_wanted(contrast: str | None, wanted: tuple[str, ...]) -> bool:
    return not wanted or contrast is None or contrast in wanted


def _scheme(known: DataSet, target: str, found: Cases, labels: LabelNames, registry: Registry) -> LabelScheme:
    """The set's own label table; where its files state another one, theirs."""
    if not known.labels:
        return label_scheme(labels, found.labels, registry)
    stated = _stated_labels(found.labels or {}, registry)
    table: Mapping[int, str] = known.labels
    if stated is not None and stated != dict(known.labels):
        table = stated
        found.notes.append(f"dataset.json names the labels {stated}, and that is used.")
    return scheme_of(known.structures(target), table, registry)


def _stated_labels(described: Mapping[str, Any], registry: Registry) -> dict[int, str] | None:
    """A dataset.json's labels with canonical names; None where it has none or names what the registry does not."""
    table = {int(key): str(name) for key, name in described.items() if key.isdigit() and key != "0"}
    if not table or not all(registry.knows_structure(name) for name in table.values()):
        return None
    return {value: registry.structure(name).name for value, name in sorted(table.items())}


@contextmanager
def _opened(known: DataSet, source: Path, unfinished: Unfinished, workers: int) -> Iterator[Path]:
    """The folder with the set's files: the source itself, or the contents of an archive or of a folder of archives."""
    if not source.exists():
        raise UserError(f"{source} does not exist; {by_hand(known)}.")
    if source.is_file():
        unpacked = unfinished.unpacked_for(source)
        with opened_source(source, folder=unpacked, wanted=known.wants, workers=workers) as folder:
            yield folder
        return
    names = {file.name.lower() for file in known.downloads}
    packed = [path for path in sorted(source.iterdir()) if path.is_file() and is_archive(path)]
    packed = [path for path in packed if path.name.lower() in names] or packed
    loose = any(path.is_dir() and not path.name.startswith(".") for path in source.iterdir())
    if loose or not packed:
        yield source
        return
    folder = unfinished.unpacked_for(source)
    with ExitStack() as stack:
        stack.enter_context(naming_archive(source, folder))
        for archive in packed:
            unpack(archive, folder / archive.name, known.wants, workers)
        yield folder
