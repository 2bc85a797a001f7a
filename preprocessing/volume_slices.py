"""Slices of prepared volumes: which planes, at which spacing, and which of them show something."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adaptmedseg.data.normalise import SEGVOL, Normalisation
from adaptmedseg.data.pictures.dataset import Axis, Sample
from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.data.views import resize_image, resize_labels

AXES: tuple[Axis, ...] = ("d", "h", "w")


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
    """The slices of a prepared case, as radiologists look at them: head or front above, the patient's right on the left.

    Intensities are normalised by the whole volume's statistics and stored as 0 to 255; resampling averages where it
    shrinks and is linear where it grows, masks are picked by nearest neighbour.
    """
    wanted = [name for name in case.annotated if name in structures]
    if not wanted:
        return
    image, labels = case.image(normalisation), case.labels()
    for axis in rule.axes:
        number = AXES.index(axis)
        plane = tuple(size for i, size in enumerate(case.spacing) if i != number)
        step = rule.spacing or min(plane)
        for index in rule.indices(case.shape[number]):
            bits = _turned(labels, number, index)
            size = (1, *(max(1, round(n * s / step)) for n, s in zip(bits.shape, plane, strict=True)))
            bits = _picked(bits, size)
            masks = {name: (bits >> case.structures.index(name)) & 1 == 1 for name in wanted}
            if max(int(mask.sum()) for mask in masks.values()) < rule.least:
                continue
            grey = resize_image(torch.from_numpy(_turned(image, number, index))[None, None, None], size, "smooth")
            yield Sample(
                id=f"{case.id}_{axis}{index:03d}",
                patient=case.patient,
                image=np.rint(grey[0, 0, 0].clamp(0, 1).numpy() * 255).astype(np.uint8),
                masks=masks,
                split=case.split,
                modality=case.modality,
                spacing=(step, step) if case.spacing_stated else None,
                source={**case.sources, "case": case.id, "axis": axis, "index": index},
            )


def _turned(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """One slice with both axes reversed: rows of a canonical volume grow to the head or front, columns to the right or
    front, and pictures show them the other way round."""
    return np.ascontiguousarray(np.take(volume, index, axis=axis)[::-1, ::-1])


def _picked(bits: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    stored = torch.from_numpy(bits.astype(np.int64))[None, None, None]
    return resize_labels(stored, size)[0, 0, 0].numpy().astype(bits.dtype)
