"""Cases of prepared data sets that are one image, or nearly; found once and kept, for every training asks."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from adaptmedseg.data.download import cache_folder
from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.data.prepared.arrays import IMAGE
from adaptmedseg.data.registry import default_registry
from adaptmedseg.data.similarity import signature, twins

Pairs = list[tuple[int, int, float]]
Progress = Callable[[int, int], None]
_MEASURE = 1  # counts up when `adaptmedseg.data.similarity` measures anything else


def near_duplicates(cases: Sequence[PreparedCase], threshold: float, progress: Progress | None = None) -> Pairs:
    """Pairs of cases (positions, first < second) that look alike, with their similarity.

    Compared are images of one family of modalities whose spacing is known. The answer depends on the stored voxels
    alone and is kept in the user's cache, so that only the first question about a collection takes its time.

    Args:
        cases: of any data sets.
        threshold: the similarity (see `adaptmedseg.data.similarity`) from which two images count as one.
        progress: called with (cases compared, cases in all) of one family after another.
    """
    families: dict[str, list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        if case.spacing_stated:
            families[default_registry().modality(case.modality).family].append(number)
    found: Pairs = []
    for members in families.values():
        pairs = _kept_or_found([cases[number] for number in members], threshold, progress)
        found += [(members[i], members[j], value) for i, j, value in pairs]
    return sorted(found)


def _kept_or_found(cases: Sequence[PreparedCase], threshold: float, progress: Progress | None) -> Pairs:
    path = _place([[case.files[IMAGE]["sha256"], *case.spacing] for case in cases], threshold)
    with suppress(OSError, ValueError, TypeError):
        return [(int(i), int(j), float(value)) for i, j, value in json.loads(path.read_text(encoding="utf-8"))]
    pairs = twins([signature(case.intensities(), case.spacing) for case in cases], threshold, progress)
    with suppress(OSError):  # without a cache the next question takes its time again
        write_atomic(path, json.dumps(pairs))
    return pairs


def _place(images: list[list[object]], threshold: float) -> Path:
    key = hashlib.sha256(json.dumps([_MEASURE, threshold, images]).encode()).hexdigest()
    return cache_folder() / "near_duplicates" / f"{key}.json"
