"""Slices of prepared volumes: which planes, at which spacing, and which of them show something."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adaptmedseg.data.normalise import SEGVOL, Normalisation
from adaptmedseg.data.pictures.dataset import Axis, Sample
from adaptmedseg.data.pictures.planes import Planes
from adaptmedseg.data.prepared import PreparedCase


@dataclass(frozen=True)
class SliceRule:
    """Which slices of a volume are taken.

    `axes`: across which axes it is cut: "d" gives axial slices, "h" coronal ones, "w" sagittal ones. `every`: each n-th
    slice; `middle`: so many round the volume's middle instead. `least`: pixels of one structure that a slice must show.
    `spacing`: mm a pixel, the same both ways; None takes the finer of the two spacings in the plane, so that pixels are
    square and nothing is lost.
    """

    axes: tuple[Axis, ...] = ("d",)
    every: int = 1
    middle: int | None = None
    least: int = 20
    spacing: float | None = None

    def indices(self, count: int) -> range:
        """The slices to look at of so many."""
        if self.middle is None:
            return range(0, count, self.every)
        start = max(0, (count - self.middle) // 2)
        return range(start, min(count, start + self.middle))


def case_slices(
    case: PreparedCase, structures: Sequence[str], rule: SliceRule, normalisation: Normalisation = SEGVOL
) -> Iterator[Sample]:
    """The slices of a prepared case, as radiologists see them: head or front above, the patient's right on the left.

    Intensities are normalised by the whole volume's statistics and stored as 0 to 255; resampling averages where it
    shrinks and is linear where it grows, masks are picked by nearest neighbour.
    """
    wanted = [name for name in case.annotated if name in structures]
    if not wanted:
        return
    image, labels = case.image(normalisation), case.labels()
    for axis in rule.axes:
        planes = Planes(case.shape, case.spacing, axis, rule.spacing)
        for index in rule.indices(len(planes)):
            bits = planes.labels(labels, index)
            masks = {name: (bits >> case.structures.index(name)) & 1 == 1 for name in wanted}
            if max(int(mask.sum()) for mask in masks.values()) < rule.least:
                continue
            yield Sample(
                id=f"{case.id}_{axis}{index:03d}",
                patient=case.patient,
                image=planes.grey(image, index),
                masks=masks,
                split=case.split,
                modality=case.modality,
                spacing=(planes.step, planes.step) if case.spacing_stated else None,
                source={**case.sources, "case": case.id, "axis": axis, "index": index},
            )
