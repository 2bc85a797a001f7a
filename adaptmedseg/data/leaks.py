"""One patient on both sides of a split: found across prepared data sets, and put on one side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Literal

from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.prepared import MANIFEST, PreparedCase, PreparedDataset
from adaptmedseg.data.registry import default_registry
from adaptmedseg.data.similarity import Signature, signature, similarity
from adaptmedseg.errors import UserError

# Measured on prostate MRI (docs/datasets.md): copies that were cut, resampled or changed in contrast stay above, scans
# of different people below.
THRESHOLD = 0.75
Kind = Literal["same file", "near duplicate"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Leak:
    """Two cases that show one patient under two names, and on which sides they are.

    `first` and `second` are 'data set/case', `similarity` is 1 for the same file, `sides` are splits or, where both
    sets have equally many folds, folds. `crosses` says that the two are on different sides.
    """

    first: str
    second: str
    kind: Kind
    similarity: float
    sides: tuple[str, str]
    crosses: bool


@dataclass(frozen=True, eq=False)
class _Item:
    dataset: PreparedDataset
    case: PreparedCase
    look: Signature | None

    @property
    def key(self) -> str:
        return f"{self.dataset.name}/{self.case.id}"


def find_leaks(
    datasets: Sequence[PreparedDataset],
    *,
    threshold: float = THRESHOLD,
    progress: Progress | None = None,
) -> list[Leak]:
    """All pairs of cases of different patients (or sets) that are one image, or nearly.

    Near duplicates are looked for among images of one family of modalities whose spacing is known.

    Args:
        datasets: prepared data sets.
        threshold: the similarity (see `adaptmedseg.data.similarity`) from which two images count as one.
        progress: called with (pairs compared, pairs in all).
    """
    found = [_leak(*twins) for twins in _twins(datasets, threshold, progress)]
    return sorted(found, key=lambda leak: (not leak.crosses, -leak.similarity, leak.first, leak.second))


def align(datasets: Sequence[PreparedDataset], leaks: Sequence[Leak]) -> int:
    """Give the patients of every leak the split and fold that the first-named data set gives them.

    The manifests of the later sets are written anew; all cases of a patient move together.

    Returns:
        How many cases moved.

    Raises:
        UserError: two sets have one name, so that their cases cannot be told apart, or unlike numbers of folds, so that
            one's folds mean nothing in the other; nothing is changed.
    """
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise UserError(f"Two of the data sets are called {max(names, key=names.count)!r}; prepare one with --name.")
    folds = {dataset.folds: dataset for dataset in datasets if dataset.folds is not None}
    if len(folds) > 1:
        stated = " and ".join(f"{dataset.folder} has {number}" for number, dataset in folds.items())
        raise UserError(f"{stated} folds, which cannot be aligned; prepare one of them with the other's --folds.")
    order = {dataset.name: number for number, dataset in enumerate(datasets)}
    entries = {
        (dataset.name, entry["patient"]): [e for e in dataset.manifest["cases"] if e["patient"] == entry["patient"]]
        for dataset in datasets
        for entry in dataset.manifest["cases"]
    }
    patient_of = {
        f"{dataset.name}/{entry['id']}": (dataset.name, entry["patient"])
        for dataset in datasets
        for entry in dataset.manifest["cases"]
    }
    moved: set[str] = set()
    changed: set[str] = set()
    for group in _groups([(patient_of[leak.first], patient_of[leak.second]) for leak in leaks]):
        leader, *followers = sorted(group, key=lambda patient: (order[patient[0]], patient[1]))
        side = {key: entries[leader][0][key] for key in ("split", "fold")}
        for follower in followers:
            for entry in entries[follower]:
                new = side if entry["fold"] is not None and side["fold"] is not None else {"split": side["split"]}
                if any(entry[key] != value for key, value in new.items()):
                    entry.update(new)
                    moved.add(f"{follower[0]}/{entry['id']}")
                    changed.add(follower[0])
    for dataset in datasets:
        if dataset.name in changed:
            write_atomic(dataset.folder / MANIFEST, json.dumps(dataset.manifest, indent=1) + "\n")
    return len(moved)


def refuse_leaks(
    datasets: Sequence[PreparedDataset], fold: int | None = None, progress: Progress | None = None
) -> None:
    """Refuse to train on a patient who is kept for validation or testing elsewhere in the data.

    Only pairs of which one is trained on and the other is not are compared.

    Args:
        datasets: the data sets that a training takes its cases from.
        fold: the fold that is left out, None where splits count.
        progress: called with (pairs compared, pairs in all).

    Raises:
        UserError: there is such a patient; the sentence names the pair.
    """

    def is_trained(item: _Item) -> bool:
        return item.case.split == "train" if fold is None else item.case.fold != fold

    def side(item: _Item) -> str:
        return item.case.split if fold is None else f"fold {item.case.fold}"

    pairs = _twins(datasets, THRESHOLD, progress, lambda first, second: is_trained(first) != is_trained(second))
    for first, second, *_ in pairs:
        folders = " ".join(str(dataset.folder) for dataset in datasets)
        raise UserError(
            f"{first.key} and {second.key} are one patient on two sides ({side(first)} and {side(second)}); put such "
            f"pairs on one side with 'adaptmedseg leaks {folders} --align'."
        )


def leaks_json(leaks: Sequence[Leak]) -> str:
    """The leaks as a JSON list."""
    return json.dumps([asdict(leak) for leak in leaks], indent=1) + "\n"


def _twins(
    datasets: Sequence[PreparedDataset],
    threshold: float,
    progress: Progress | None = None,
    wanted: Callable[[_Item, _Item], bool] = lambda first, second: True,
) -> Iterator[tuple[_Item, _Item, Kind, float]]:
    """Wanted pairs of cases that are not known to be one patient and are one image, or nearly."""
    items = [_Item(dataset, case, _look(case)) for dataset in datasets for case in dataset.cases()]
    pairs = [pair for pair in _strangers(items) if wanted(*pair)]
    for done, (first, second) in enumerate(pairs, start=1):
        alike = _alike(first, second, threshold)
        if alike is not None:
            yield first, second, *alike
        if progress is not None:
            progress(done, len(pairs))


def _look(case: PreparedCase) -> Signature | None:
    return signature(case.intensities(), case.spacing) if case.spacing_stated else None


def _strangers(items: Sequence[_Item]) -> Iterator[tuple[_Item, _Item]]:
    """Pairs that are not known to be one patient."""
    for first, second in combinations(items, 2):
        if first.dataset is not second.dataset or first.case.patient != second.case.patient:
            yield first, second


def _alike(first: _Item, second: _Item, threshold: float) -> tuple[Kind, float] | None:
    if first.case.sources["image"]["sha256"] == second.case.sources["image"]["sha256"]:
        return "same file", 1.0
    registry = default_registry()
    if registry.modality(first.case.modality).family != registry.modality(second.case.modality).family:
        return None
    if first.look is None or second.look is None:
        return None
    value = similarity(first.look, second.look)
    return ("near duplicate", round(value, 3)) if value >= threshold else None


def _leak(first: _Item, second: _Item, kind: Kind, value: float) -> Leak:
    by_fold = first.dataset.folds is not None and first.dataset.folds == second.dataset.folds
    sides = [f"fold {item.case.fold}" if by_fold else item.case.split for item in (first, second)]
    return Leak(first.key, second.key, kind, value, (sides[0], sides[1]), sides[0] != sides[1])


def _groups(pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]]) -> list[set[tuple[str, str]]]:
    """Patients that are linked, directly or through others."""
    groups: list[set[tuple[str, str]]] = []
    for pair in pairs:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if not group & set(pair)] + [set(pair).union(*touched)]
    return groups
