"""The manifest of a prepared data set: reading it, and refusing what is none."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from adaptmedseg.data.grid import Grid
from adaptmedseg.data.intensity import IntensityStatistics
from adaptmedseg.data.normalise import Crop
from adaptmedseg.data.prepared.arrays import Scale
from adaptmedseg.data.prepared.case import PreparedCase
from adaptmedseg.data.prepared.masks import Place
from adaptmedseg.errors import UserError

FORMAT = "adaptmedseg-prepared"
VERSION = 3
MANIFEST = "manifest.json"
Split = Literal["train", "val", "test"]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        UserError: there is none, it is damaged, or it is of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is no prepared data set (no {MANIFEST}); make one with 'adaptmedseg prepare'.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run prepare again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(
            f"{path} is no manifest of a prepared data set{stated_format(manifest)}; make one with 'adaptmedseg "
            "prepare'."
        )
    if manifest.get("version") != VERSION:
        version = manifest.get("version")
        raise UserError(f"{path} has version {version} and this release reads {VERSION}; prepare the data again.")
    return manifest


def stated_format(manifest: object) -> str:
    """What a manifest says that it is, for messages; empty where it says nothing."""
    stated = manifest.get("format") if isinstance(manifest, dict) else None
    return f" (its format is {stated!r})" if isinstance(stated, str) else ""


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds the manifest of a prepared data set, readable or not by this release."""
    try:
        return f'"{FORMAT}"' in (folder / MANIFEST).read_text(encoding="utf-8")[:200]
    except (OSError, ValueError):
        return False


def case_of(entry: dict[str, Any], folder: Path, structures: tuple[str, ...], folds: int | None = None) -> PreparedCase:
    """A case from its entry in the manifest of a set with so many `folds`.

    Raises:
        UserError: the id is unsafe, or the split or fold is none.
        KeyError, TypeError, ValueError, IndexError: the entry is damaged.
    """
    path, identity = folder / MANIFEST, entry["id"]
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", identity):
        raise UserError(f"{path} holds the unsafe case id {identity!r}; run prepare again.")
    if entry["split"] not in get_args(Split):
        choices = ", ".join(get_args(Split))
        raise UserError(f"{path} gives {identity} the split {entry['split']!r}; write one of {choices}.")
    fold = entry["fold"]
    if fold is not None and (not isinstance(fold, int) or isinstance(fold, bool) or not 0 <= fold < (folds or 0)):
        there = f"one of 0 to {folds - 1}" if folds else "null, as the set has no folds"
        raise UserError(f"{path} gives {identity} the fold {fold!r}; write {there}.")
    intensity = entry["intensity"]
    return PreparedCase(
        id=entry["id"],
        patient=entry["patient"],
        site=entry["site"],
        modality=entry["modality"],
        spacing=_triple(entry["spacing"]),
        grid=Grid(_triple(entry["grid"]["shape"]), np.array(entry["grid"]["affine"], dtype=np.float64)),
        crop=cast(Crop, _triple([tuple(pair) for pair in entry["crop"]])),
        shape=_triple(entry["shape"]),
        scale=Scale(float(intensity["slope"]), float(intensity["intercept"])),
        statistics=IntensityStatistics.from_json(intensity["statistics"]),
        annotated=tuple(entry["annotated"]),
        voxels=dict(entry["voxels"]),
        voxels_in_crop=dict(entry["voxels_in_crop"]),
        split=entry["split"],
        fold=entry["fold"],
        folder=folder / "cases" / entry["id"],
        structures=structures,
        places={name: Place.from_json(place) for name, place in entry["masks"].items()},
        sources=entry["sources"],
        files={name: dict(facts) for name, facts in entry["files"].items()},
        spacing_stated=bool(entry.get("spacing_stated", True)),
    )


def _triple(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third
