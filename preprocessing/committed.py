"""Committed case lists: fixed splits of published sets, so that figures of two people compare.

The lists are ``splits/NAME.yaml``. Each says how it was made; `make_list` makes it again from the published names.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any, cast

import yaml
from adaptmedseg.preprocessing.split import Partition, fold_patients, split_patients

from adaptmedseg.data.prepared import Split

TEST_FRACTION, VAL_FRACTION, FOLDS, SEED = 0.2, 0.1, 5, 0


def committed_lists(name: str) -> Partition:
    """The committed split and folds of a set; a partition without lists where there are none."""
    path = resources.files("adaptmedseg.preprocessing").joinpath("splits", f"{name}.yaml")
    if not path.is_file():
        return Partition()
    lists: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if lists.get("folds") == "sites":
        return Partition(by_site=True)
    split = {patient: cast(Split, part) for part, patients in lists["split"].items() for patient in patients}
    folds = {patient: number for number, patients in enumerate(lists["folds"]) for patient in patients}
    return Partition(committed=split, committed_folds=folds)


def make_list(patients: list[str], *, block: int | None = None) -> dict[str, Any]:
    """The lists of a set from its published patients: shares 0.2 test and 0.1 validation, five folds, seed 0.

    Args:
        patients: names in the published order.
        block: divide every stretch of so many names for itself, for sets whose number of cases is not stated: every
            part of the numbering then has its share.
    """
    stretches = [patients[start : start + block] for start in range(0, len(patients), block)] if block else [patients]
    split: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    folds: list[list[str]] = [[] for _ in range(FOLDS)]
    for stretch in stretches:
        parts = split_patients(stretch, test_fraction=TEST_FRACTION, val_fraction=VAL_FRACTION, seed=SEED)
        numbers = fold_patients(stretch, folds=FOLDS, seed=SEED)
        for patient in stretch:
            split[parts[patient]].append(patient)
            folds[numbers[patient]].append(patient)
    return {"split": split, "folds": folds}
