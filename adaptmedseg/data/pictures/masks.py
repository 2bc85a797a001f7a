"""Reading masks of pictures: black and white, label maps, palettes, and whatever else people draw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse

from adaptmedseg.data.labels import LabelScheme
from adaptmedseg.data.pictures.read import read_picture
from adaptmedseg.errors import UserError

SPARSE = ".npz"


@dataclass(frozen=True, eq=False)
class PictureMask:
    """`masks`: boolean (h, w) by structure, in the order of the scheme or the one structure; `notes` say what was
    done."""

    path: Path
    masks: dict[str, np.ndarray]
    notes: list[str]


def read_binary_mask(path: Path, shape: tuple[int, int], structure: str, threshold: float = 0.5) -> PictureMask:
    """A mask of one structure: a pixel belongs to it from `threshold` of the brightest value of the file's depth on.

    So a mask of 8 bits with anti-aliased edges is cut at 128 by default. A mask of zeros and ones is taken as it is,
    and so is a palette's: index 0 is the background, any other the structure.

    Raises UserError as `_values`, and where all that is not black is darker than the threshold.
    """
    values, indexed = _values(path, shape)
    kinds = np.unique(values)
    if indexed or (len(kinds) <= 2 and kinds[-1] <= 1):
        return PictureMask(path, {structure: values > 0}, [])
    # 8 bits stored in a deeper file, such as a float TIFF of 0 and 255, are still 8.
    top = 255.0 if values.max() <= 255 else float(np.iinfo(values.dtype).max)
    cut = int(np.ceil(threshold * top))
    if 0 < values.max() < cut:
        raise UserError(
            f"{path}: is black throughout as masks are read, for its brightest pixel is {values.max()} and those from "
            f"{cut} of {top:.0f} on are inside; lower the share with --threshold, or name the value with --label "
            f"{values.max()}=NAME"
        )
    between = int(np.count_nonzero((values > 0) & (values < values.max())))
    notes = []
    if between:
        notes.append(f"{between} pixels are neither black nor white; those from {cut} of {top:.0f} on count as inside")
    return PictureMask(path, {structure: values >= cut}, notes)


def read_label_map(path: Path, shape: tuple[int, int], scheme: LabelScheme) -> PictureMask:
    """A mask of several structures, each the union of the values that `scheme` gives it; 0 is the background.

    A palette's indices are the values, whatever their colours. An .npz of scipy is a sparse matrix (structures,
    pixels), whose row k is the value k + 1 and whose rows may overlap.

    Raises UserError as `_values`, and for a value without a name.
    """
    if path.suffix.lower() == SPARSE:
        rows = _sparse_rows(path, shape)
        present = [value for value, row in enumerate(rows, 1) if row.any()]
        _check_known(path, present, scheme)
        layers = dict(enumerate(rows, 1))
    else:
        values, _ = _values(path, shape)
        present = [int(value) for value in np.unique(values) if value]
        _check_known(path, present, scheme)
        layers = {value: values == value for value in present}
    empty = np.zeros(shape, bool)
    masks = {
        name: np.logical_or.reduce([layers.get(value, empty) for value in wanted])
        for name, wanted in scheme.values.items()
    }
    return PictureMask(path, masks, [])


def _check_known(path: Path, present: list[int], scheme: LabelScheme) -> None:
    unknown = sorted(set(present) - scheme.known_values)
    if not unknown:
        return
    soft = " (a black-and-white mask with soft edges is read without --label, as one --structure)"
    raise UserError(
        f"{path}: holds the value {unknown[0]}{f' and {len(unknown) - 1} others' if unknown[1:] else ''} without a "
        f"name; name it, --label {unknown[0]}=NAME, or drop it, --label {unknown[0]}=background"
        f"{soft if len(unknown) > 10 else ''}"
    )


def _values(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, bool]:
    """The whole numbers of a mask (h, w), and whether they are indices into a palette.

    Raises UserError for an unreadable file, another size than the picture's, colours, and numbers that are not whole.
    """
    picture = read_picture(path)
    if picture.shape != shape:
        (h, w), (height, width) = picture.shape, shape
        raise UserError(
            f"{path}: is {w}×{h} pixels and its picture {width}×{height}; draw it on the picture, or resize it by "
            "nearest neighbour"
        )
    values = picture.pixels
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            count = len(np.unique(values.reshape(-1, 3), axis=0))
            raise UserError(
                f"{path}: has {count} colours, which no rule turns into structures; save it as a grey label map or "
                "with a palette"
            )
        values = values[..., 0]
    if values.dtype.kind == "f":
        if (values != np.rint(values)).any() or values.min() < 0 or values.max() >= 1 << 16:
            raise UserError(f"{path}: holds numbers that are no labels; save it with whole numbers from 0 on")
        values = values.astype(np.uint16)
    if values.dtype.kind == "i":
        raise UserError(f"{path}: holds values below 0 or above 65535; save it with whole numbers from 0 on")
    return values, picture.palette is not None


def _sparse_rows(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        matrix = scipy.sparse.load_npz(path)  # refuses pickled objects
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError) as error:
        raise UserError(f"{path}: is no sparse matrix of scipy ({error}); give a picture or such a file") from None
    if matrix.shape[1] != shape[0] * shape[1]:
        raise UserError(f"{path}: has {matrix.shape[1]} pixels and its picture {shape[0] * shape[1]}; check the pair")
    return matrix.toarray().reshape(matrix.shape[0], *shape) > 0
