"""The note beside a mask: all that is needed to know what it means and to make it again."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from adaptmedseg import __version__
from adaptmedseg.data.source import source_sha256
from adaptmedseg.inference.naming import Case
from adaptmedseg.inference.prediction import Answer
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.inference.prompt_file import PromptSet

Outcome = dict[str, Any]
FORMAT = "adaptmedseg prediction"
FORMAT_VERSION = 1
_LIBRARIES = ("torch", "numpy", "nibabel", "SimpleITK", "monai")


@dataclass(frozen=True)
class StructureNote:
    """What is kept of an answer when its arrays are gone; `files` are relative to the output folder."""

    label: int
    structure: str
    origin: str
    found: bool
    windows: int
    volume_ml: float
    files: dict[str, str]

    @classmethod
    def of(cls, label: int, answer: Answer, volume_ml: float, files: dict[str, str]) -> StructureNote:
        return cls(label, answer.structure, answer.origin, answer.found, answer.windows, volume_ml, files)


def case_note(
    predictor: Predictor, case: Case, modality: str, prompts: PromptSet, zoom: bool, notes: Sequence[StructureNote]
) -> Outcome:
    """Contents of the JSON beside a mask, but for timings, memory and remarks."""
    loaded, volume, grid = predictor.loaded, predictor.volume, predictor.volume.grid
    asked = {
        entry.structure: entry.model_dump(exclude={"structure"}, exclude_defaults=True) for entry in prompts.prompts
    }
    chosen = {name: value for name, value in (("channel", case.channel), ("series", case.series)) if value is not None}
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "image": volume.path.name,
        "image_sha256": image_hash(volume.path),
        **chosen,
        **({"series_uid": volume.series_uid} if volume.series_uid else {}),
        "modality": modality,
        "labels": {str(note.label): note.structure for note in notes},
        "overlap": "the structure with the higher label wins",
        "prompts": {note.structure: {"origin": note.origin, **asked[note.structure]} for note in notes},
        "prompt_space": prompts.space,
        "volume_ml": {note.structure: round(note.volume_ml, 3) for note in notes},
        "found": {note.structure: note.found for note in notes},
        "windows": {note.structure: note.windows for note in notes},
        "files": {note.structure: note.files for note in notes if note.files},
        "zoom": zoom,
        "view": list(loaded.size),
        "crop_dhw": [list(pair) for pair in predictor.crop],
        "shape": list(grid.shape),
        "spacing_mm": [round(float(size), 6) for size in np.linalg.norm(grid.affine[:3, :3], axis=0)],
        "orientation": grid.codes,
        "affine": grid.affine.tolist(),
        "model": loaded.lineage,
        "hashes": loaded.hashes,
        "device": str(predictor.device),
        "settings": asdict(predictor.settings),
        "lattice": predictor.segmenter.lattice,
        "versions": versions(),
    }


def image_hash(path: Path) -> str | None:
    """SHA-256 of what holds the voxels, as in prepared data; None for a DICOM series, whose UID says which it is."""
    return None if path.is_dir() else source_sha256(path)


def versions() -> dict[str, str]:
    """Of this program, Python and the libraries that numbers depend on."""
    found = {"adaptmedseg": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
