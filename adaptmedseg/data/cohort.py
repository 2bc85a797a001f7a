"""What only shows when cases are compared: the same image twice, and cases that are unlike all others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from adaptmedseg.data.check_result import CaseCheck
from adaptmedseg.data.patients import named_patient
from adaptmedseg.data.similarity import twins

_FEWEST = 5  # cases from which on one can be called unlike the others
_UNLIKE_SPACING, _UNLIKE_VOLUME = 2.0, 6.0


def compare_cases(cases: Sequence[CaseCheck]) -> dict[str, list[str]]:
    """Warnings by case id: near duplicates, and spacing or volumes far from the other cases'."""
    warnings: dict[str, list[str]] = defaultdict(list)
    readable = [case for case in cases if case.spacing is not None]
    seen = [(case.id, case.look) for case in readable if case.look is not None]
    for i, j, likeness in twins([look for _, look in seen]):
        (first, _), (second, _) = seen[i], seen[j]
        if named_patient(first) != named_patient(second):
            warnings[second].append(
                f"{second}: looks like the case {first} (similarity {likeness:.2f}); one scan or patient must not be "
                "in two splits (see --patient-pattern of prepare)"
            )
    if len(readable) >= _FEWEST:
        _unlike_spacing(readable, warnings)
        _unlike_volumes(readable, warnings)
    return dict(warnings)


def _unlike_spacing(cases: Sequence[CaseCheck], warnings: dict[str, list[str]]) -> None:
    middle = np.median([case.spacing for case in cases if case.spacing], axis=0)
    for case in cases:
        ratio = np.abs(np.log(np.array(case.spacing) / middle))
        if ratio.max() > np.log(_UNLIKE_SPACING):
            sizes = " × ".join(f"{size:.3g}" for size in case.spacing or ())
            usual = " × ".join(f"{size:.3g}" for size in middle)
            warnings[case.id].append(f"{case.id}: voxels measure {sizes} mm where the usual case has {usual} mm")


def _unlike_volumes(cases: Sequence[CaseCheck], warnings: dict[str, list[str]]) -> None:
    """A structure many times as large, or as small, as in the other cases: a wrong value, or voxels of a wrong size."""
    by_structure: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for case in cases:
        for name, volume in case.volumes_ml.items():
            if volume:
                by_structure[name].append((case.id, volume))
    for name, volumes in by_structure.items():
        if len(volumes) < _FEWEST:
            continue
        middle = float(np.median([volume for _, volume in volumes]))
        for case_id, volume in volumes:
            if max(volume / middle, middle / volume) > _UNLIKE_VOLUME:
                warnings[case_id].append(
                    f"{case_id}: {name} has {volume:.3g} ml where the usual case has {middle:.3g} ml"
                )
