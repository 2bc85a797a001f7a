"""What a prediction holds, structure by structure, and how it is saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adaptmedseg.data.volume import Volume, write_mask
from adaptmedseg.inference.naming import structure_file_names
from adaptmedseg.inference.segmenter import StructureResult


@dataclass(frozen=True)
class Answer:
    """One structure of one image: logits on the crop, and how they came about.

    `origin` says how it was asked. `found`: whether the view of the whole image saw any of it.
    """

    structure: str
    origin: str
    result: StructureResult
    crop: tuple[slice, slice, slice]
    shape: tuple[int, int, int]

    @property
    def found(self) -> bool:
        return self.result.found

    @property
    def windows(self) -> int:
        return self.result.windows

    @property
    def mask(self) -> np.ndarray:
        """Boolean mask (d, h, w) of the whole canonical volume; made anew at each call."""
        mask = np.zeros(self.shape, bool)
        np.greater(self.result.logits, 0, out=mask[self.crop])
        return mask

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities (d, h, w), float32, 0 outside of the crop; made anew at each call."""
        whole = np.zeros(self.shape, np.float32)
        inside = whole[self.crop]
        # 1 / (1 + exp(-x)) in place; exp of a clipped number cannot overflow.
        np.clip(self.result.logits, -80, 80, out=inside)
        np.negative(inside, out=inside)
        np.exp(inside, out=inside)
        inside += 1
        np.reciprocal(inside, out=inside)
        return whole


def label_dtype(structures: int) -> type[np.uint8] | type[np.uint16]:
    """The dtype of a label map of so many structures."""
    return np.uint8 if structures < 256 else np.uint16


@dataclass(frozen=True)
class Prediction:
    """Masks of one image: `masks` maps names to boolean arrays (d, h, w) on the canonical grid of `volume`.

    `origins` says how each structure was asked; `windows`, in how many windows at full resolution it was looked at;
    `not_found` names those of which the view of the whole image saw nothing.
    """

    volume: Volume
    masks: dict[str, np.ndarray]
    origins: dict[str, str] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    not_found: tuple[str, ...] = ()

    def label_map(self) -> np.ndarray:
        """One integer map (d, h, w): structure i of the request has label i + 1; where two overlap, the later wins."""
        labels = np.zeros(self.volume.data.shape, label_dtype(len(self.masks)))
        for value, mask in enumerate(self.masks.values(), 1):
            labels[mask] = value
        return labels

    def label_names(self) -> dict[int, str]:
        """Label value to structure name of `label_map`."""
        return dict(enumerate(self.masks, 1))

    def save(self, path: Path) -> None:
        """Write the label map on the scanner's grid of the input; re-read and checked before it gets its name."""
        write_mask(path, self.label_map(), self.volume.grid)

    def save_each(self, folder: Path) -> dict[str, Path]:
        """Write one mask a structure, overlaps kept, as FOLDER/NAME.nii.gz; gives the paths by structure."""
        paths = {name: folder / f"{file}.nii.gz" for name, file in structure_file_names(list(self.masks)).items()}
        for name, path in paths.items():
            write_mask(path, self.masks[name], self.volume.grid)
        return paths
