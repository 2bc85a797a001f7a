"""How far a mask can be trusted, from the model alone: does it keep its answer when the image is changed a little?

The image is asked again after changes that leave the anatomy as it is: other intensities (gamma), a shift within the
view, mirrored left to right. Where the masks agree, and where the model's probabilities are near 0 or 1, the mask is
usually right (Wang et al. 2019, test-time augmentation; Roy et al. 2019, agreement as a stand-in for Dice). A
calibration on cases with truth (`evaluation.confidence`) turns this into an estimate of Dice.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adaptmedseg.data.overlap import dice
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.prompts import StructurePrompt

Mirror = Callable[[str], str | None]
GAMMAS = (0.8, 1.25)
SHIFT = 0.06  # of the crop's height and width
_LEAST = 0.01  # agreements closer than this to 0 or 1 count as this far from it


@dataclass(frozen=True)
class Evidence:
    """What speaks for a mask: `agreement`, the mean Dice with the masks of the changed images, and `sharpness`, the
    Dice of the mask with its own probabilities. Both are 0 where the mask is empty."""

    agreement: float
    sharpness: float

    @property
    def score(self) -> float:
        """Both on the logit scale, averaged: any real number, higher for better masks."""
        values = np.clip([self.agreement, self.sharpness], _LEAST, 1 - _LEAST)
        return float(np.mean(np.log(values / (1 - values))))


@dataclass(frozen=True)
class Change:
    """A change of a crop (d, h, w): the zeros added before and after each axis, the exponent of intensities, and
    whether left and right are exchanged (axis w)."""

    before: tuple[int, int, int] = (0, 0, 0)
    after: tuple[int, int, int] = (0, 0, 0)
    gamma: float = 1.0
    mirrored: bool = False

    def image(self, crop: np.ndarray) -> np.ndarray:
        """The changed crop, float32 in [0, 1]."""
        changed = np.pad(crop, list(zip(self.before, self.after, strict=True)))
        changed = changed if self.gamma == 1 else changed ** np.float32(self.gamma)
        return np.ascontiguousarray(changed[..., ::-1]) if self.mirrored else changed

    def prompt(self, prompt: StructurePrompt, width: int, mirror: Mirror) -> StructurePrompt | None:
        """The same question in the changed crop, `width` being that of the crop before; None where there is none."""
        points, box = (None if x is None else self._moved(x, width) for x in (prompt.points, prompt.box))
        if box is not None:
            box = torch.sort(box, dim=0).values
        name = mirror(prompt.structure) if self.mirrored else prompt.structure
        if name is None:
            return None
        return StructurePrompt(name, prompt.text, points, prompt.labels, box)

    def _moved(self, coords: torch.Tensor, width: int) -> torch.Tensor:
        moved = coords.float() + torch.tensor(self.before, dtype=torch.float32)
        if self.mirrored:
            moved[..., 2] = width + self.before[2] + self.after[2] - 1 - moved[..., 2]
        return moved

    def back(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the changed crop on the voxels of the crop."""
        turned = mask[..., ::-1] if self.mirrored else mask
        return turned[tuple(slice(a, n - b) for a, b, n in zip(self.before, self.after, turned.shape, strict=True))]


def changes_of(shape: tuple[int, ...]) -> list[Change]:
    """The changes that a crop of this shape is asked with: five, each one encoding more."""
    _, h, w = (max(1, round(SHIFT * n)) for n in shape)
    return [
        *(Change(gamma=gamma) for gamma in GAMMAS),
        Change(before=(1, h, w)),
        Change(after=(1, h, w)),
        Change(mirrored=True),
    ]


def sharpness(logits: np.ndarray) -> float:
    """Dice of the mask with the probabilities that it was cut from; 0 for an empty mask."""
    foreground = logits > 0
    size = int(np.count_nonzero(foreground))
    if not size:
        return 0.0
    # Far below 0 nothing is added that counts, and most of a volume lies there.
    near = logits[logits > -8].astype(np.float64)
    probabilities = 1 / (1 + np.exp(-np.clip(near, -60, 60)))
    return float(2 * probabilities[near > 0].sum() / (probabilities.sum() + size))


def agreements(
    segmenter: CropSegmenter,
    prompts: Sequence[StructurePrompt],
    masks: Mapping[str, np.ndarray],
    zoom: bool,
    mirror: Mirror,
) -> dict[str, float]:
    """Mean Dice of each structure's mask (d, h, w) with those of the changed images of the segmenter's crop.

    `mirror` gives the name of a structure seen in a mirror, None where the model knows none: it is then not asked so.
    An empty mask agrees with nothing. The segmenter keeps its image: another one asks.
    """
    crop, modality = segmenter.crop, segmenter.modality
    other = CropSegmenter(
        segmenter.model, segmenter.size, segmenter.resize, segmenter.device, segmenter.settings, segmenter.lattice
    )
    found: dict[str, list[float]] = {prompt.structure: [] for prompt in prompts}
    for change in changes_of(crop.shape):
        asked = [(prompt.structure, change.prompt(prompt, crop.shape[2], mirror)) for prompt in prompts]
        questions = [(name, question) for name, question in asked if question is not None]
        other.set_crop(change.image(crop), modality)
        results = other.segment([question for _, question in questions], zoom)
        for (name, _), result in zip(questions, results, strict=True):
            found[name].append(dice(change.back(result.logits > 0), masks[name]) or 0.0)
    return {name: float(np.mean(values)) for name, values in found.items()}


def mirror_within(structures: Collection[str], mirror: Callable[[str], str]) -> Mirror:
    """The mirror's name of a structure where it is one of a model's `structures`; any name where it has no list."""

    def named(name: str) -> str | None:
        partner = mirror(name)
        return partner if partner == name or not structures or partner in structures else None

    return named
