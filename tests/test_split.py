"""Splits and folds: laws over any set of patients, sites and modalities; the committed lists."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from adaptmedseg.preprocessing.case import SourceCase
from adaptmedseg.preprocessing.committed import committed_lists, make_list
from adaptmedseg.preprocessing.split import Partition, divide, fold_patients, split_patients
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptmedseg.errors import UserError

STRATA = st.dictionaries(
    st.text("abcdefgh0123", min_size=1, max_size=6), st.sampled_from(["A", "B", "C"]), min_size=10, max_size=60
)
TASK05 = [0, 1, 2, 4, 6, 7, 10, 13, 14, 16, 17, 18, 20, 21, 24, 25, 28, 29, 31, 32, 34, 35, 37, 38, 39, 40, 41, 42]
TASK05 += [43, 44, 46, 47]


@settings(max_examples=60, deadline=None)
@given(STRATA, st.integers(0, 5), st.randoms())
def test_splits_are_even_over_strata_and_independent_of_order(strata: dict, seed: int, shuffler: random.Random) -> None:
    split = split_patients(strata, test_fraction=0.2, val_fraction=0.1, seed=seed)
    assert set(split) == set(strata)
    names = list(strata)
    shuffler.shuffle(names)
    again = {name: strata[name] for name in names}
    assert split_patients(again, test_fraction=0.2, val_fraction=0.1, seed=seed) == split
    for stratum in set(strata.values()):
        members = [name for name in strata if strata[name] == stratum]
        counts = Counter(split[name] for name in members)
        for part, share in (("test", 0.2), ("val", 0.1)):
            assert abs(counts[part] - share * len(members)) < 3


@settings(max_examples=60, deadline=None)
@given(STRATA, st.integers(2, 6), st.integers(0, 5))
def test_folds_are_even_over_all_and_within_strata(strata: dict, folds: int, seed: int) -> None:
    fold = fold_patients(strata, folds=folds, seed=seed)
    sizes = Counter(fold.values())
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert fold == fold_patients(dict(reversed(strata.items())), folds=folds, seed=seed)
    for stratum in set(strata.values()):
        within = Counter(number for name, number in fold.items() if strata[name] == stratum)
        assert max(within.values()) - min(within[number] for number in range(folds)) <= 1


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from("XYZ"), st.sampled_from(["CT", "MRI"])), min_size=20),
    st.sampled_from([Partition(), Partition(folds=3), Partition(test_fraction=0.5, seed=4)]),
)
def test_a_patient_is_never_on_two_sides(scans: list, partition: Partition) -> None:
    cases = [
        SourceCase(f"c{place}", Path("i"), Path("l"), f"p{patient}", modality, site)
        for place, (patient, site, modality) in enumerate(scans)
    ]
    if len({case.patient for case in cases}) < 4:
        with pytest.raises(UserError, match="patients"):
            divide(cases, Partition(folds=4))
        return
    division = divide(cases, partition)
    sides: dict[str, set] = {}
    for entry in division.values():
        sides.setdefault(entry["patient"], set()).add((entry["split"], entry["fold"]))
    assert all(len(side) == 1 for side in sides.values())


@pytest.mark.parametrize(
    ("name", "patients", "block"),
    [
        ("msd-prostate", [f"prostate_{number:02}" for number in TASK05], None),
        ("promise12", [f"Case{number:02}" for number in range(50)], None),
        ("t2w-prostate", [f"P_{number:03}" for number in range(1, 301)], 10),
    ],
)
def test_committed_lists_are_what_they_say(name: str, patients: list[str], block: int | None) -> None:
    made, lists = make_list(patients, block=block), committed_lists(name)
    assert lists.committed == {patient: part for part, group in made["split"].items() for patient in group}
    assert lists.committed_folds == {patient: k for k, group in enumerate(made["folds"]) for patient in group}
    assert set(lists.committed) == set(patients)
    parts = Counter(lists.committed.values())
    assert abs(parts["test"] - 0.2 * len(patients)) < 1


def test_saml_is_divided_by_site_and_other_sets_have_no_list() -> None:
    assert committed_lists("saml").by_site
    assert committed_lists("chaos") == Partition()
