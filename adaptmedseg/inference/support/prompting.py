"""Prompts for SAM's decoder, made from where a structure is expected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from adaptmedseg.models.prompts import StructurePrompt

MOST_PARTS = 6  # connected parts of a structure that are asked for one by one
LEAST_SHARE = 0.1  # of the largest part's expected area
LOWEST = -8.0  # logits of what is certainly not the part that is asked for
WAYS = ("box", "points", "box and mask")


@dataclass(frozen=True, eq=False)
class Part:
    """One connected part of what is expected: a box (2, 2), lower and upper corner; a point (2,) well inside and one
    (2,) outside, the least likely of the box's surroundings; and logits (h, w), very negative elsewhere."""

    box: Tensor
    inside: Tensor
    outside: Tensor
    logits: Tensor

    def prompt(self, structure: str, way: str) -> StructurePrompt:
        """As one of `WAYS`; the mask is passed beside it."""
        if way == "points":
            points = torch.stack([self.inside, self.outside])
            return StructurePrompt(structure, text=False, points=points, labels=torch.tensor([1, 0]))
        return StructurePrompt(structure, text=False, box=self.box)


def parts_of(logits: Tensor, threshold: float) -> list[Part]:
    """The parts of a map (h, w) above a threshold, the largest first; at least one, round the highest value."""
    values = logits.numpy()
    found, count = ndimage.label(values > threshold)
    if not count:
        found, count = ndimage.label(values >= values.max())
    chances = 1 / (1 + np.exp(-np.clip(values, -30, 30)))
    sizes = ndimage.sum_labels(chances, found, np.arange(1, count + 1))
    order = np.argsort(-sizes, kind="stable")[:MOST_PARTS]
    slices = ndimage.find_objects(found)
    return [_part(values, found == i + 1, slices[i]) for i in order if sizes[i] >= LEAST_SHARE * sizes[order[0]]]


def _part(values: np.ndarray, mask: np.ndarray, where: tuple[slice, slice]) -> Part:
    box = np.array([[s.start for s in where], [s.stop - 1 for s in where]], np.float32)
    # A ring of background, so that a part at the border of its box has an inside.
    depth = ndimage.distance_transform_edt(np.pad(mask[where], 1))[1:-1, 1:-1]
    inside = np.array(np.unravel_index(int(depth.argmax()), depth.shape)) + box[0]
    margin = 2 + (box[1] - box[0]) // 4
    low = np.maximum(box[0] - margin, 0).astype(int)
    high = np.minimum(box[1] + margin + 1, values.shape).astype(int)
    round_it = values[low[0] : high[0], low[1] : high[1]]
    outside = np.array(np.unravel_index(int(round_it.argmin()), round_it.shape)) + low
    alone = np.where(mask, values, np.minimum(values, LOWEST))
    return Part(*(torch.from_numpy(np.asarray(x, np.float32)) for x in (box, inside, outside, alone)))
