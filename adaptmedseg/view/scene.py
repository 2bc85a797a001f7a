"""What the page shows and asks: a volume with its model, on canonical voxels.

The page knows nothing but canonical voxels (x, y, z): index 0 is the most left, posterior and inferior one. A scene
says how these become the file's own voxels, in which prompts are given, and millimetres of the scanner.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from adaptmedseg.data.shown import shown_image, shown_labels
from adaptmedseg.data.volume import spacing_dhw, write_mask
from adaptmedseg.errors import UserError
from adaptmedseg.inference.naming import structure_file_names
from adaptmedseg.inference.predictor import Predictor

PERCENTILES = (0.5, 99.5)  # what is shown black and white at first


@dataclass(frozen=True)
class Reply:
    """A mask, uint8 in the order of the canonical voxels (x fastest), and what is to be said of it."""

    mask: np.ndarray
    facts: dict[str, Any]


@dataclass(frozen=True)
class Download:
    """A file for the user to keep."""

    name: str
    content: bytes


class Scene(Protocol):
    """One image, encoded once, with a model that answers prompts."""

    def facts(self) -> dict[str, Any]:
        """What the page has to know, as JSON."""
        ...

    def image(self) -> bytes:
        """NIfTI, canonical and straight (`data.shown`)."""
        ...

    def empty_mask(self) -> bytes:
        """A mask without a voxel, NIfTI as the image, for the page to fill."""
        ...

    def reference(self) -> bytes | None:
        """A label map to show beside the answers, NIfTI as the image; None where there is none."""
        ...

    def ask(self, document: object, zoom: bool | None) -> Reply:
        """Answer prompts of one structure (`docs/prompts.md`, in voxels). UserError where they cannot be asked."""
        ...

    def save(self) -> Download:
        """The last answer, as a file on the image's own grid. UserError where there is none."""
        ...


@dataclass(frozen=True, eq=False)
class Reference:
    """Labels (d, h, w), canonical, and what their values mean; where they come from in a word."""

    labels: np.ndarray
    names: Mapping[int, str]
    origin: str


class VolumeScene:
    """A volume that a predictor holds."""

    def __init__(self, predictor: Predictor, name: str, modality: str, reference: Reference | None = None):
        self.predictor, self.name, self.modality, self._reference = predictor, name, modality, reference
        self._last: tuple[str, np.ndarray] | None = None

    def facts(self) -> dict[str, Any]:
        volume, loaded = self.predictor.volume, self.predictor.loaded
        canonical = volume.grid.canonical()
        reference = self._reference
        shown = set() if reference is None else set(reference.names.values())
        return {
            "name": self.name,
            "kind": "volume",
            "modality": self.modality,
            "model": loaded.lineage,
            "shape": list(canonical.shape),
            "spacing": list(volume.spacing[::-1]),
            "to_file": np.rint(np.linalg.inv(volume.grid.affine) @ canonical.affine).tolist(),
            "to_world": canonical.affine.tolist(),
            "structures": sorted(loaded.structures, key=lambda name: name not in shown),
            "named": True,
            "zoom": loaded.zooms(self.modality),
            "window": [float(value) for value in np.percentile(volume.data, PERCENTILES)],
            "reference": None if reference is None else {"names": reference.names, "origin": reference.origin},
            "notes": [*volume.notes, *filter(None, [loaded.untrained, self.predictor.modality_doubt()])],
        }

    def image(self) -> bytes:
        return shown_image(self.predictor.volume.data, self.predictor.volume.spacing)

    def empty_mask(self) -> bytes:
        volume = self.predictor.volume
        return shown_labels(np.zeros(volume.data.shape, np.uint8), volume.spacing)

    def reference(self) -> bytes | None:
        if self._reference is None:
            return None
        return shown_labels(self._reference.labels, spacing_dhw(self.predictor.volume.grid))

    def ask(self, document: object, zoom: bool | None) -> Reply:
        prompts = self.predictor.parse(document)
        if len(prompts.prompts) != 1:
            raise UserError("the page asks for one structure at a time")
        answer = next(self.predictor.answers(prompts, zoom=zoom))
        mask = answer.mask
        self._last = answer.structure, mask
        voxels = int(np.count_nonzero(mask))
        facts = {
            "structure": answer.structure,
            "origin": answer.origin,
            "windows": answer.windows,
            "size": f"{voxels * self.predictor.volume.grid.voxel_ml:.4g} ml",
            "voxels": voxels,
        }
        return Reply(mask.view(np.uint8), facts)

    def save(self) -> Download:
        if self._last is None:
            raise UserError("there is no mask yet; click into the image first")
        structure, mask = self._last
        name = f"{self.name}_{structure_file_names([structure])[structure]}.nii.gz"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mask.nii.gz"
            write_mask(path, mask, self.predictor.volume.grid)
            return Download(name, path.read_bytes())
