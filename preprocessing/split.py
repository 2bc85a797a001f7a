"""Splits and folds by patient, seeded and independent of the order of files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from adaptmedseg.data.prepared import Split
from adaptmedseg.errors import UserError

# Several acquisitions of one patient, as ACDC's patient001_frame01 or follow-up visits, belong in one split.
REPEATED_SCAN = re.compile(r"(.+?)[-_](?:frame|phase|time|visit|ses|session|scan|followup)[-_]?\d+$", re.IGNORECASE)


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
        repeated = REPEATED_SCAN.match(case_id)
        return repeated[1] if repeated else case_id
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
    patients: Iterable[str], *, test_fraction: float, val_fraction: float, seed: int
) -> dict[str, Split]:
    """Give every patient a split; a fraction above 0 gets at least one patient, and training keeps at least one.

    A test fraction of 1 is the exception: the whole set is for testing.

    Raises:
        UserError: the fractions leave nothing to train on, or there are too few patients.
    """
    if test_fraction == 1 and val_fraction == 0:
        return dict.fromkeys(patients, "test")
    if min(test_fraction, val_fraction) < 0 or test_fraction + val_fraction >= 1:
        raise UserError(
            f"Test and val fractions {test_fraction} and {val_fraction} must be 0 or more, below 1 together; "
            "a test fraction of 1 with a val fraction of 0 keeps the whole set for testing."
        )
    ordered = _shuffled(patients, seed)
    test, val = (max(1, round(len(ordered) * f)) if f else 0 for f in (test_fraction, val_fraction))
    if test + val >= len(ordered):
        raise UserError(
            f"{len(ordered)} patients are too few for {test} test and {val} validation patients; set a fraction to 0."
        )
    split: dict[str, Split] = {}
    for rank, patient in enumerate(ordered):
        split[patient] = "test" if rank < test else "val" if rank < test + val else "train"
    return split


def fold_patients(patients: Iterable[str], *, folds: int, seed: int) -> dict[str, int]:
    """Give every patient a fold 0..folds-1, as even as can be.

    Raises:
        UserError: fewer than two folds, or fewer patients than folds.
    """
    ordered = _shuffled(patients, seed)
    if not 2 <= folds <= len(ordered):
        raise UserError(f"{folds} folds of {len(ordered)} patients cannot be made; choose 2 to {len(ordered)} folds.")
    return {patient: rank % folds for rank, patient in enumerate(ordered)}


def _shuffled(patients: Iterable[str], seed: int) -> list[str]:
    """Patients in an order that depends on the seed and their names alone."""
    return sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
