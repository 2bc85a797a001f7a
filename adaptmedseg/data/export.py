"""Back from a prepared data set to files that every program reads: NIfTI on the scanner's grid, and nnU-Net's layout.

Label maps hold one value a structure, in order from 1; where structures overlap, every combination that occurs gets a
value of its own, and the description lists for each structure the values whose union it is, as nnU-Net's regions do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.nifti import save_nifti
from adaptmedseg.data.normalise import crop_slices
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset
from adaptmedseg.data.volume import to_grid, write_checked, write_mask
from adaptmedseg.errors import UserError

Progress = Callable[[int, int], None]
DESCRIPTION = "dataset.json"
_MOST_VALUES = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class LabelValues:
    """Which value of a label map stands for which structures: `combinations` (bit masks) in the order of their values
    from 1, `names` in bit order."""

    names: tuple[str, ...]
    combinations: tuple[int, ...]

    @property
    def regions(self) -> dict[str, list[int]]:
        """Structure to the values whose union it is."""
        return {
            name: [value for value, bits in enumerate(self.combinations, 1) if bits >> bit & 1]
            for bit, name in enumerate(self.names)
        }

    @property
    def overlapping(self) -> bool:
        """Whether some voxels belong to several structures."""
        return len(self.combinations) > len(self.names)

    def encode(self, bits: np.ndarray) -> np.ndarray:
        """Bit masks to a label map, uint8 or uint16 of the same shape."""
        values, where = np.unique(bits, return_inverse=True)
        table = {combination: value for value, combination in enumerate(self.combinations, 1)}
        coded = np.array([table.get(int(value), 0) for value in values], np.min_scalar_type(len(self.combinations)))
        return coded[where].reshape(bits.shape)


def label_values(cases: Sequence[PreparedCase], structures: Sequence[str]) -> LabelValues:
    """The values that the label maps of some cases need."""
    single = [1 << bit for bit in range(len(structures))]
    found = {int(value) for case in cases for value in np.unique(case.labels(structures))}
    combinations = (*single, *sorted(found - {0, *single}))
    if len(combinations) > _MOST_VALUES:
        raise UserError(f"{len(combinations)} combinations of structures do not fit into a label map; name fewer.")
    return LabelValues(tuple(structures), combinations)


def export_nifti(
    dataset: PreparedDataset, out: Path, structures: Sequence[str] | None = None, progress: Progress | None = None
) -> int:
    """Write `images/ID.nii.gz`, `labels/ID.nii.gz` and a `dataset.json` that `prepare` reads; gives the cases written.

    Args:
        dataset: the prepared set.
        out: a new folder.
        structures: those to write; all by default.
        progress: called with (cases done, cases in all).

    Raises:
        UserError: `out` holds files, a structure is unknown, or the disk is full.
    """
    names = _names(dataset, structures)
    cases = dataset.cases(structures=names)
    _check_new(out)
    values = label_values(cases, names)
    for done, case in enumerate(cases, 1):
        _write_pair(case, values, out / "images" / f"{case.id}.nii.gz", out / "labels" / f"{case.id}.nii.gz")
        if progress is not None:
            progress(done, len(cases))
    description = {
        "name": dataset.name,
        "channel_names": {"0": dataset.modalities[0]} if len(dataset.modalities) == 1 else {},
        "labels": _labels(values),
        "cases": {case.id: _facts(case) for case in cases},
    }
    write_atomic(out / DESCRIPTION, json.dumps(description, indent=1) + "\n")
    return len(cases)


def export_nnunet(
    dataset: PreparedDataset,
    out: Path,
    number: int,
    structures: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Path, list[str]]:
    """Write nnU-Net's raw layout, `OUT/DatasetNNN_Name/`: test cases in imagesTs, the others in imagesTr and labelsTr.

    Cases that do not annotate all structures are left out, for nnU-Net would take what is unknown for background.
    `splits_final.json` holds the folds, or the validation split, in nnU-Net's form.

    Returns:
        The folder, and the ids of the cases that were left out.

    Raises:
        UserError: as `export_nifti`; the set has several modalities; no case annotates all structures.
    """
    names = _names(dataset, structures)
    if len(dataset.modalities) > 1:
        raise UserError(
            f"{dataset.folder} holds {', '.join(dataset.modalities)}, and nnU-Net wants one; prepare one of them alone."
        )
    cases = [case for case in dataset.cases() if set(names) <= set(case.annotated)]
    left_out = [case.id for case in dataset.cases() if case not in cases]
    if not cases:
        raise UserError(
            f"{dataset.folder} has no case that annotates all of {', '.join(names)}; name fewer structures."
        )
    folder = out / f"Dataset{number:03d}_{re.sub(r'[^A-Za-z0-9]', '', dataset.name) or 'Prepared'}"
    _check_new(folder)
    values = label_values(cases, names)
    for done, case in enumerate(cases, 1):
        end = "Ts" if dataset.folds is None and case.split == "test" else "Tr"
        image, label = folder / f"images{end}" / f"{case.id}_0000.nii.gz", folder / f"labels{end}" / f"{case.id}.nii.gz"
        _write_pair(case, values, image, label)
        if progress is not None:
            progress(done, len(cases))
    # nnU-Net paints its regions one over the other in this order: what lies within another comes after it.
    order = sorted(names, key=lambda name: -len(values.regions[name]))
    training = [case for case in cases if dataset.folds is not None or case.split != "test"]
    description: dict[str, Any] = {
        "name": dataset.name,
        "channel_names": {"0": dataset.modalities[0]},
        "labels": {"background": 0, **{name: _labels(values)[name] for name in order}},
        "numTraining": len(training),
        "file_ending": ".nii.gz",
    }
    if values.overlapping:
        description["regions_class_order"] = [names.index(name) + 1 for name in order]
    write_atomic(folder / "splits_final.json", json.dumps(_splits(dataset, training), indent=1) + "\n")
    write_atomic(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")
    return folder, left_out


def scanner_intensities(case: PreparedCase) -> np.ndarray:
    """A case's image on its full canonical grid (d, h, w); what the crop left out has the volume's lowest intensity."""
    inside = case.intensities()
    whole = np.full(case.grid.canonical().shape[::-1], case.statistics.lowest, np.float32)
    whole[crop_slices(case.crop)] = inside
    limits = np.iinfo(np.int16)
    if limits.min <= whole.min() and whole.max() <= limits.max and np.array_equal(np.rint(whole), whole):
        return whole.astype(np.int16)
    return whole


def scanner_labels(case: PreparedCase, values: LabelValues) -> np.ndarray:
    """A case's label map on its full canonical grid (d, h, w)."""
    coded = values.encode(case.labels(values.names))
    whole = np.zeros(case.grid.canonical().shape[::-1], coded.dtype)
    whole[crop_slices(case.crop)] = coded
    return whole


def _write_pair(case: PreparedCase, values: LabelValues, image: Path, label: Path) -> None:
    image.parent.mkdir(parents=True, exist_ok=True)
    write_checked(image, to_grid(scanner_intensities(case), case.grid), case.grid, save_nifti)
    write_mask(label, scanner_labels(case, values), case.grid)


def _names(dataset: PreparedDataset, wanted: Sequence[str] | None) -> list[str]:
    names = [dataset.registry.structure(name).name for name in wanted] if wanted is not None else dataset.structures
    unknown = sorted(set(names) - set(dataset.structures))
    if unknown:
        known = ", ".join(dataset.structures)
        raise UserError(f"{dataset.folder} holds no structure '{unknown[0]}'; it holds {known}.")
    return list(dict.fromkeys(names))


def _labels(values: LabelValues) -> dict[str, int | list[int]]:
    return {name: region[0] if len(region) == 1 else region for name, region in values.regions.items()}


def _facts(case: PreparedCase) -> dict[str, Any]:
    return {
        "patient": case.patient,
        "site": case.site,
        "modality": case.modality,
        "split": case.split,
        "fold": case.fold,
        "annotated": list(case.annotated),
        "source": case.sources,
    }


def _splits(dataset: PreparedDataset, cases: Sequence[PreparedCase]) -> list[dict[str, list[str]]]:
    if dataset.folds is None:
        return [{part: [case.id for case in cases if case.split == part] for part in ("train", "val")}]
    return [
        {
            "train": [case.id for case in cases if case.fold != fold],
            "val": [case.id for case in cases if case.fold == fold],
        }
        for fold in range(dataset.folds)
    ]


def _check_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds files already; choose a new folder for --out")
