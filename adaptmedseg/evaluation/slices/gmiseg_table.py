"""The measurement behind GMISeg's table 2: unseen tasks by support sets, a row a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from adaptmedseg.data.pictures.dataset import SliceDataset
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.slices.asking import Queries, SliceMethod
from adaptmedseg.evaluation.slices.by_support import SupportStudy, score_supports
from adaptmedseg.evaluation.slices.tables import AVERAGE, structure_rows
from adaptmedseg.inference.support.segmenter import Method
from adaptmedseg.inference.support.supports import MOST

GMISEG_SETS = ("ACDC", "MICCAI 2018", "Synapse", "STARE", "ISLES 2022")

SUPPORT_SET: Method = "support set"


@dataclass(frozen=True)
class GmisegRow:
    """Means over the structures of a set, in the paper's units: `dice` and `jaccard` in percent, `asd_mm` None where
    the size of pixels is unknown. `supports` is the size of the largest support set that could be drawn, `images` how
    many were scored. `missing` says why a row has no figures; then all of these are None or 0."""

    dataset: str
    dice: float | None
    jaccard: float | None
    asd_mm: float | None
    supports: int
    images: int
    missing: str = ""


def gmiseg_table(
    model: SliceMethod,
    sets: Mapping[str, Path],
    device: torch.device,
    *,
    shots: int = MOST,
    draws: int = 1,
    tell: Callable[[str], None] = print,
) -> list[GmisegRow]:
    """One row for each of `GMISEG_SETS`. `sets` maps their names to sets of slices (`adaptmedseg slices`), whose split
    "train" gives supports, at most `shots` a structure, and whose split "test" is scored.

    UserError for a damaged set and for images that the model was trained on.
    """
    return [
        _row(model, name, SliceDataset.open(sets[name]), device, shots, draws, tell)
        if name in sets
        else GmisegRow(name, None, None, None, 0, 0, "no data given")
        for name in GMISEG_SETS
    ]


def _row(
    model: SliceMethod,
    name: str,
    dataset: SliceDataset,
    device: torch.device,
    shots: int,
    draws: int,
    tell: Callable[[str], None],
) -> GmisegRow:
    pool, items = dataset.items("train"), dataset.items("test", dataset.structures)
    records: list[Record] = []
    used = [0]
    for structure in dataset.structures:
        size = min(shots, sum(structure in item.present() for item in pool))
        if size:
            study = SupportStudy([size], draws, methods=(SUPPORT_SET,))
            records += score_supports(model, pool, Queries(dataset, items, [structure]), study, device, tell)
            used.append(size)
    if not records:
        return GmisegRow(name, None, None, None, 0, 0, "the set has no image to draw from or none to score")
    rows = [row for row in structure_rows(records) if row.structure != AVERAGE]
    dice, jaccard, asd = (_mean([row.means[column] for row in rows]) for column in range(3))
    images = len({record.case for record in records})
    return GmisegRow(name, _percent(dice), _percent(jaccard), asd, max(used), images)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
