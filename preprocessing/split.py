"""Splits and folds by patient: seeded, independent of the order of files, even over sites and modalities."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptmedseg.preprocessing.case import SourceCase

from adaptmedseg.data.patients import named_patient
from adaptmedseg.data.prepared import Split
from adaptmedseg.errors import UserError

Strata = Mapping[str, Hashable]


@dataclass(frozen=True)
class Partition:
    """How patients are divided.

    The first that is given counts: `left_out_site` (its patients test, the others train and validate), `by_site` (a
    fold a site), `folds` (their number), `committed` (a published or committed list: patient to split), the
    publisher's own split of the cases (unless `published` is False), and else the shares.
    """

    test_fraction: float = 0.2
    val_fraction: float = 0.1
    folds: int | None = None
    by_site: bool = False
    left_out_site: str | None = None
    committed: Mapping[str, Split] | None = None
    committed_folds: Mapping[str, int] | None = None
    published: bool = True
    seed: int = 0


def divide(cases: Sequence[SourceCase], partition: Partition) -> dict[str, dict[str, Any]]:
    """Patient, split and fold of every case, by case id; cases of one patient always stay together.

    Raises:
        UserError: a site does not exist, or there are too few patients or sites.
    """
    patients = {case.id: case.patient for case in cases}
    strata = _strata(cases)
    fold: Mapping[str, int] | None = None
    split: Mapping[str, Split]
    if partition.left_out_site is not None:
        split = _leave_out(cases, strata, partition)
    elif partition.by_site or partition.folds is not None:
        fold = _folds(cases, strata, partition)
        split = {patient: "train" if number else "test" for patient, number in fold.items()}
    elif partition.committed is not None:
        split = {patient: partition.committed.get(patient, "train") for patient in strata}
    elif partition.published and any(case.split for case in cases):
        split = _published(cases, strata, partition)
    else:
        split = split_patients(
            strata, test_fraction=partition.test_fraction, val_fraction=partition.val_fraction, seed=partition.seed
        )
    return {
        case: {"patient": patient, "split": split[patient], "fold": fold[patient] if fold else None}
        for case, patient in patients.items()
    }


def description(cases: Sequence[SourceCase], partition: Partition) -> str:
    """How `divide` divides these cases, in words for the manifest."""
    if partition.left_out_site is not None:
        return f"tested on the site {partition.left_out_site}, seed {partition.seed}"
    if partition.by_site:
        return "one fold a site"
    if partition.folds is not None:
        return f"{partition.folds} folds by patient, seed {partition.seed}"
    if partition.committed is not None:
        return "committed list"
    if partition.published and any(case.split for case in cases):
        return f"the publisher's split, validation by seed {partition.seed}"
    shares = f"{partition.test_fraction:g} test and {partition.val_fraction:g} validation"
    return f"{shares} of the patients, seed {partition.seed}"


def patient_of(case_id: str, pattern: str | None) -> str:
    """The patient that a case belongs to.

    Args:
        case_id: the case's id.
        pattern: a regular expression searched in the id; its first group, or the whole match, is the patient. None
            takes the id itself without an ending such as ``_frame01`` or ``_visit2``.

    Raises:
        UserError: the pattern is no regular expression or does not match.
    """
    if pattern is None:
        return named_patient(case_id)
    try:
        found = re.search(pattern, case_id)
    except re.error as error:
        raise UserError(f"The patient pattern {pattern!r} is no regular expression ({error}); correct it.") from error
    if found is None:
        raise UserError(f"The patient pattern {pattern!r} does not match the case {case_id!r}; correct it.")
    patient = found[1] if found.re.groups else found[0]
    if not patient:
        raise UserError(f"The patient pattern {pattern!r} finds an empty name in {case_id!r}; correct it.")
    return patient


def split_patients(
    patients: Iterable[str] | Strata, *, test_fraction: float, val_fraction: float, seed: int
) -> dict[str, Split]:
    """Give every patient a split; a fraction above 0 gets at least one patient, and training keeps at least one.

    A test fraction of 1 is the exception: the whole set is for testing.

    Args:
        patients: names, or a mapping from names to strata (site and modality): each stratum then gives each split its
            share, to within three patients.
        test_fraction, val_fraction: shares of the patients.
        seed: of the order in which patients are taken.

    Raises:
        UserError: the fractions leave nothing to train on, or there are too few patients.
    """
    strata = patients if isinstance(patients, Mapping) else dict.fromkeys(patients, None)
    if test_fraction == 1 and val_fraction == 0:
        return dict.fromkeys(strata, "test")
    if min(test_fraction, val_fraction) < 0 or test_fraction + val_fraction >= 1:
        raise UserError(
            f"Test and val fractions {test_fraction} and {val_fraction} must be 0 or more, below 1 together; "
            "a test fraction of 1 with a val fraction of 0 keeps the whole set for testing."
        )
    ordered = _interleaved(strata, seed)
    test, val = (max(1, round(len(ordered) * f)) if f else 0 for f in (test_fraction, val_fraction))
    if test + val >= len(ordered):
        raise UserError(
            f"The patients are too few ({len(ordered)}) for {test} to test and {val} to validate; set a fraction to 0 "
            "(--test-fraction, --val-fraction)."
        )
    split: dict[str, Split] = {}
    for rank, patient in enumerate(ordered):
        split[patient] = "test" if rank < test else "val" if rank < test + val else "train"
    return split


def fold_patients(patients: Iterable[str] | Strata, *, folds: int, seed: int) -> dict[str, int]:
    """Give every patient a fold 0..folds-1, as even as can be, over all and within every stratum.

    Raises:
        UserError: fewer than two folds, or fewer patients than folds.
    """
    strata = patients if isinstance(patients, Mapping) else dict.fromkeys(patients, None)
    ordered = [patient for group in _shuffled_strata(strata, seed) for patient in group]
    if not 2 <= folds <= len(ordered):
        raise UserError(f"{folds} folds of {len(ordered)} patients cannot be made; choose 2 to {len(ordered)} folds.")
    return {patient: rank % folds for rank, patient in enumerate(ordered)}


def _strata(cases: Sequence[SourceCase]) -> dict[str, Hashable]:
    """The sites and modalities of every patient."""
    seen: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for case in cases:
        seen[case.patient].add((case.site, case.modality))
    return {patient: tuple(sorted(kinds)) for patient, kinds in seen.items()}


def _leave_out(cases: Sequence[SourceCase], strata: Strata, partition: Partition) -> dict[str, Split]:
    sites = {case.site.lower(): case.site for case in cases}
    site = sites.get((partition.left_out_site or "").lower())
    if site is None:
        raise UserError(
            f"No case is of the site {partition.left_out_site!r}; the sites are {', '.join(sites.values())}."
        )
    test: dict[str, Split] = dict.fromkeys((case.patient for case in cases if case.site == site), "test")
    others = {patient: stratum for patient, stratum in strata.items() if patient not in test}
    if not others:
        raise UserError(f"All cases are of the site {site!r}, so that none is left to train on; choose another split.")
    rest = split_patients(others, test_fraction=0, val_fraction=partition.val_fraction, seed=partition.seed)
    return {**test, **rest}


def _folds(cases: Sequence[SourceCase], strata: Strata, partition: Partition) -> Mapping[str, int]:
    if not partition.by_site:
        listed = partition.committed_folds
        if listed is not None and set(strata) <= set(listed):
            numbers = {patient: listed[patient] for patient in strata}
            if len(set(numbers.values())) == partition.folds:  # a part of the set may lack a whole fold
                return numbers
        return fold_patients(strata, folds=partition.folds or 0, seed=partition.seed)
    sites = sorted({case.site for case in cases})
    if len(sites) < 2:
        raise UserError(f"All cases are of the site {sites[0]!r}; folds by site need two or more, so choose a number.")
    return {case.patient: sites.index(case.site) for case in cases}


def _published(cases: Sequence[SourceCase], strata: Strata, partition: Partition) -> dict[str, Split]:
    """The publisher's split; where it has no validation part, one is taken from its training part."""
    split: dict[str, Split] = {case.patient: case.split or "train" for case in cases}
    training = {patient: strata[patient] for patient, name in split.items() if name == "train"}
    if "val" not in split.values() and partition.val_fraction and len(training) > 1:
        split |= split_patients(training, test_fraction=0, val_fraction=partition.val_fraction, seed=partition.seed)
    return split


def _shuffled_strata(strata: Strata, seed: int) -> list[list[str]]:
    """The strata, each with its patients in an order that depends on the seed and their names alone."""
    groups: dict[str, list[str]] = defaultdict(list)
    for patient in strata:
        groups[repr(strata[patient])].append(patient)
    return [sorted(groups[name], key=lambda patient: _rank(patient, seed)) for name in sorted(groups)]


def _interleaved(strata: Strata, seed: int) -> list[str]:
    """All patients in an order whose every stretch holds the strata in proportion."""
    placed = [
        ((index + 0.5) / len(group), _rank(patient, seed), patient)
        for group in _shuffled_strata(strata, seed)
        for index, patient in enumerate(group)
    ]
    return [patient for *_, patient in sorted(placed)]


def _rank(patient: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{patient}".encode()).digest()
