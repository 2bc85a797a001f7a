"""M3D-Seg, the format that SegVol was trained from: arrays, sparse masks that may overlap, lists in JSON."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from adaptmedseg.preprocessing.case import CaseData, Cases, SourceCase
from adaptmedseg.preprocessing.reading import unplaced_grid
from adaptmedseg.preprocessing.sets.amos22 import amos_modality
from adaptmedseg.preprocessing.sets.described import channels, read_json
from adaptmedseg.preprocessing.sets.finding import grouped
from adaptmedseg.preprocessing.sets.model import DataSet
from scipy import sparse

from adaptmedseg.data.grid import checked_image
from adaptmedseg.data.labels import LabelScheme, bit_dtype
from adaptmedseg.data.prepared import Split
from adaptmedseg.errors import UserError

_LISTS: dict[str, Split] = {"train": "train", "training": "train", "validation": "val", "test": "test"}
_SHAPE = re.compile(r"mask_\((\d+), ?(\d+), ?(\d+), ?(\d+)\)\.npz$")


def find(root: Path, target: str) -> Cases:
    """The cases of one sub-set, split as its lists say.

    Raises:
        UserError: there is not one JSON file of lists, or it cannot be read.
    """
    lists = grouped(root, r"(\d{4})/\1\.json")
    if len(lists) != 1:
        names = ", ".join(number for (number,) in lists) or "none"
        raise UserError(f"{root} must be the folder of one sub-set with its NNNN.json ({names} are here); name one.")
    path = next(iter(lists.values()))[0]
    described = read_json(path)
    modality = next(iter(channels(described).values()))[1] if described.get("modality") else "CT"
    found = Cases(labels=described.get("labels"))
    for name, split in _LISTS.items():
        for item in described.get(name) or []:
            _add(found, path.parent, item, modality, split)
    found.cases.sort(key=lambda case: case.id)
    return found


def _add(found: Cases, folder: Path, item: Mapping[str, Any], modality: str, split: Split) -> None:
    """Add a listed case. Lists hold paths from elsewhere; the last two parts are those below the sub-set's folder."""
    image, label = (folder.joinpath(*Path(str(item.get(key, ""))).parts[-2:]) for key in ("image", "label"))
    case = image.parent.name
    if not image.is_file() or not label.is_file():
        missing = image if not image.is_file() else label
        found.problems.append(f"{missing} is in the lists and not in the folder; get it again.")
        return
    amos = re.fullmatch(r"amos_(\d+)", case)
    true = amos_modality(int(amos[1])) if amos else modality
    if true != modality:
        found.notes.append(f"{case} is marked {modality} and is {true}.")
    identity = re.sub(r"[^\w.+-]", "_", case)
    found.cases.append(SourceCase(identity, image, label, identity, true, split=split))


def read(case: SourceCase, scheme: LabelScheme) -> CaseData:
    """Read an array (1, x, y, z) and its sparse masks, row k of which is label k + 1.

    The files state neither spacing nor orientation; axes are taken to run to the right, the front and the head.

    Raises:
        UserError: a file is damaged, or the shapes differ.
    """
    array = _image(case.image)
    masks, shape = _masks(case.label)
    if shape[1:] != array.shape:
        raise UserError(f"{case.label} has shape {shape[1:]} and its image {array.shape}; leave the case out.")
    rows = {value: masks[value - 1].indices for value in scheme.known_values if 0 < value <= shape[0]}
    absent = sorted(scheme.known_values - set(rows) - {0})
    if absent:
        raise UserError(f"{case.label} has {shape[0]} masks where the set names {absent[-1]}; leave the case out.")
    flat = np.zeros(math.prod(array.shape), bit_dtype(len(scheme.values)))
    for bit, values in enumerate(scheme.values.values()):
        for value in values:
            flat[rows[value]] |= flat.dtype.type(1 << bit)
    counts = {value: len(indices) for value, indices in rows.items() if len(indices)}
    image = checked_image(array, unplaced_grid(shape[1:], case.spacing, "RAS"), case.image)
    bits = np.ascontiguousarray(flat.reshape(shape[1:]).transpose(2, 1, 0))
    return CaseData(image, bits, counts, spacing_stated=case.spacing is not None)


def _image(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); get it again.") from error
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.number):
        raise UserError(f"{path} is no image of the shape (1, x, y, z) but {array.shape}; get it again.")
    return array


def _masks(path: Path) -> tuple[Any, tuple[int, int, int, int]]:
    """The sparse masks (k, x * y * z), duplicates and stored zeros removed, and the shape in the file's name."""
    found = _SHAPE.search(path.name)
    if found is None:
        raise UserError(f"{path} does not state its shape in its name, as in mask_(2, 64, 64, 32).npz; get it again.")
    k, x, y, z = (int(number) for number in found.groups())
    try:
        masks = sparse.csr_matrix(sparse.load_npz(path))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); get it again.") from error
    if masks.shape != (k, x * y * z):
        raise UserError(f"{path} holds an array of {masks.shape}, which is not the shape in its name; get it again.")
    masks.sum_duplicates()
    masks.eliminate_zeros()
    return masks, (k, x, y, z)


SET = DataSet(
    name="m3d-seg",
    title="a sub-set of M3D-Seg",
    page="https://huggingface.co/datasets/GoodBaiBai88/M3D-Seg",
    layout="NNNN/{NNNN.json,CASE/image.npy,CASE/mask_(K, X, Y, Z).npz}",
    find=find,
    read=read,
    spacing_stated=False,
    login="none; fetch one sub-set's folder by hand, the whole is very large",
)
