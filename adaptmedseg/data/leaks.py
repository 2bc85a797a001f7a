"""One patient on both sides of a split: found across prepared data sets, and put on one side."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Literal

from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.near_duplicates import near_duplicates
from adaptmedseg.data.prepared import MANIFEST, PreparedCase, PreparedDataset
from adaptmedseg.data.similarity import THRESHOLD
from adaptmedseg.errors import UserError

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

    Args:
        datasets: prepared data sets.
        threshold, progress: as `adaptmedseg.data.near_duplicates.near_duplicates`.
    """
    found = [_leak(*pair) for pair in _pairs(datasets, threshold, progress)]
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

    Args:
        datasets: the data sets that a training takes its cases from.
        fold: the fold that is left out, None where splits count.
        progress: as `find_leaks`.

    Raises:
        UserError: there is such a patient; the sentence names the pair.
    """

    def is_trained(item: _Item) -> bool:
        return item.case.split == "train" if fold is None else item.case.fold != fold

    def side(item: _Item) -> str:
        return item.case.split if fold is None else f"fold {item.case.fold}"

    for first, second, *_ in _pairs(datasets, THRESHOLD, progress):
        if is_trained(first) == is_trained(second):
            continue
        folders = " ".join(str(dataset.folder) for dataset in datasets)
        raise UserError(
            f"{first.key} and {second.key} are one patient on two sides ({side(first)} and {side(second)}); put such "
            f"pairs on one side with 'adaptmedseg leaks {folders} --align'."
        )


def leaks_json(leaks: Sequence[Leak]) -> str:
    """The leaks as a JSON list."""
    return json.dumps([asdict(leak) for leak in leaks], indent=1) + "\n"


def _pairs(
    datasets: Sequence[PreparedDataset], threshold: float, progress: Progress | None
) -> Iterator[tuple[_Item, _Item, Kind, float]]:
    """Pairs of cases that are not known to be one patient and are one image, or nearly."""
    items = [_Item(dataset, case) for dataset in datasets for case in dataset.cases()]
    found: dict[tuple[int, int], tuple[Kind, float]] = {
        (i, j): ("near duplicate", value)
        for i, j, value in near_duplicates([item.case for item in items], threshold, progress)
    }
    by_file: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        by_file[item.case.sources["image"]["sha256"]].append(number)
    for same in by_file.values():
        found |= dict.fromkeys(combinations(same, 2), ("same file", 1.0))
    for (i, j), (kind, value) in sorted(found.items()):
        first, second = items[i], items[j]
        if first.dataset is not second.dataset or first.case.patient != second.case.patient:
            yield first, second, kind, value


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
