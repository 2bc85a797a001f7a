"""What a checked folder means for a model: how coarse its view will be, what its rule for intensities hides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from adaptmedseg.data.check_result import CaseCheck, CheckReport

Size3 = tuple[int, int, int]
FEW_VIEW_VOXELS = 64  # below, a structure in the zoom-out view is a speck
DARK_SHARE = 0.25
UNEVEN = 4.0


@dataclass(frozen=True)
class Advice:
    """Figures over all readable cases, and sentences that follow from them.

    `spacing` (d, h, w) in mm is the median; `view_mm` what a voxel of the network's view measures in the median case;
    `view_voxels` how many voxels of the view each structure covers in the median case; `darkened` the share of each
    structure that SegVol's rule sets to 0, over cases; `annotating` the number of cases that annotate each structure.
    """

    spacing: tuple[float, ...]
    view_mm: tuple[float, ...]
    view_voxels: dict[str, float]
    darkened: dict[str, float]
    annotating: dict[str, int]
    sentences: tuple[str, ...]

    @property
    def smallest(self) -> float:
        """View voxels of the smallest structure."""
        return min(self.view_voxels.values(), default=float("inf"))

    @property
    def hides_tissue(self) -> bool:
        """Whether SegVol's rule darkens a good part of some structure."""
        return max(self.darkened.values(), default=0.0) > DARK_SHARE

    @property
    def uneven(self) -> bool:
        """Whether some structure has many times the cases of another."""
        counts = self.annotating.values()
        return bool(counts) and max(counts) >= UNEVEN * min(counts)


def advise(report: CheckReport, view: Size3) -> Advice | None:
    """Advice for a network that sees `view` (d, h, w) voxels; None where no case can be read."""
    cases = [case for case in report.cases if case.spacing is not None and case.crop is not None]
    if not cases:
        return None
    names = sorted({name for case in cases for name in case.volumes_ml})
    spacing = np.median([case.spacing for case in cases if case.spacing], axis=0)
    view_mm = np.median([_view_mm(case, view) for case in cases], axis=0)
    covered = {
        name: _median(_view_voxels(case, name, view) for case in cases if case.voxels.get(name)) for name in names
    }
    dark = {name: _median(case.darkened[name] for case in cases if name in case.darkened) for name in names}
    annotating = {name: sum(name in case.volumes_ml for case in cases) for name in names}
    advice = Advice(tuple(spacing.tolist()), tuple(view_mm.tolist()), covered, dark, annotating, ())
    return replace(advice, sentences=tuple(_sentences(advice, view)))


def _sentences(advice: Advice, view: Size3) -> list[str]:
    usual, seen = (" × ".join(f"{mm:.2g}" for mm in sizes) for sizes in (advice.spacing, advice.view_mm))
    said = [
        f"Voxels measure {usual} mm (d, h, w: along the body, front to back, side to side; median). The network's view "
        f"of a whole image has {'×'.join(map(str, view))} voxels; there they measure {seen} mm."
    ]
    ratio = max(advice.spacing) / min(advice.spacing)
    if ratio > 3:
        said.append(
            f"Slices are {ratio:.1f} times as thick as voxels are wide; keep the images as they are, for resampling to "
            "cubes adds no detail."
        )
    specks = [f"{name} ({n:.0f})" for name, n in advice.view_voxels.items() if n < FEW_VIEW_VOXELS]
    if specks:
        said.append(f"In that view few voxels are left of {', '.join(specks)}: train on windows too (data.zoom_in).")
    hidden = [f"{name} ({share:.0%})" for name, share in advice.darkened.items() if share > DARK_SHARE]
    if hidden:
        said.append(
            f"SegVol's rule for intensities makes much of {', '.join(hidden)} black; the rules percentile and nyul keep"
            " dark tissue (data.normalise)."
        )
    if advice.uneven:
        counts = ", ".join(f"{name} {n}" for name, n in advice.annotating.items())
        said.append(f"Structures are annotated in unlike numbers of cases ({counts}): balance them (data.balance).")
    return said


def _extent(case: CaseCheck) -> np.ndarray:
    return np.array([stop - start for start, stop in case.crop or ()], float)


def _view_mm(case: CaseCheck, view: Size3) -> np.ndarray:
    return _extent(case) * np.array(case.spacing) / np.array(view)


def _view_voxels(case: CaseCheck, name: str, view: Size3) -> float:
    return case.voxels[name] * float(np.prod(np.array(view) / _extent(case)))


def _median(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.median(listed)) if listed else 0.0
