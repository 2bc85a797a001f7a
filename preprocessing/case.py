"""What a source holds before any voxel is read: cases, and what is wrong with the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adaptmedseg.data.labels import LabelScheme
from adaptmedseg.data.prepared import Split
from adaptmedseg.data.volume import Volume


@dataclass(frozen=True)
class SourceCase:
    """One image and its annotation, as found on disk.

    `image` and `label` are files or, for DICOM and stacks of pictures, folders. `modality` is a registry name.
    `contrast` tells the images of one patient that share an annotation (as "t2" and "adc"), `channel` is the volume to
    read of a 4D file. `split` is the publisher's, where there is one. `spacing` (d, h, w in mm) is what the user gave
    for a format that states none.
    """

    id: str
    image: Path
    label: Path
    patient: str
    modality: str
    site: str = "unknown"
    contrast: str | None = None
    channel: int | None = None
    split: Split | None = None
    spacing: tuple[float, float, float] | None = None


@dataclass(frozen=True, eq=False)
class CaseData:
    """One case read and checked: the canonical image, its bit masks (d, h, w), and the voxels of every label value.

    `spacing_stated` is False where neither the files nor the user say how large voxels are; one unit a voxel then
    stands for it. `notes` are sentences on what was done to the data beyond reading it.
    """

    image: Volume
    bits: np.ndarray
    counts: dict[int, int]
    spacing_stated: bool = True
    notes: tuple[str, ...] = ()


Reader = Callable[[SourceCase, LabelScheme], CaseData]


@dataclass
class Cases:
    """What was found: cases, sentences on what had to be left out, notes, and the source's own description.

    `labels` are label values and names, and `licence` the licence, where the source's own description states them.
    """

    cases: list[SourceCase] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    labels: dict[str, Any] | None = None
    licence: str = ""
