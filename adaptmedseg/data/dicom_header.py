"""What single DICOM files say of themselves, read through SimpleITK's GDCM."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK

from adaptmedseg.errors import UserError

_PREAMBLE = 128
_SUFFIXES = (".dcm", ".ima", ".dicom")
_STORAGE = "1.2.840.10008.5.1.4.1.1."
# CT, MR, PET (plain, enhanced and legacy converted) and secondary capture: files that hold a slice.
_SLICE_CLASSES = {_STORAGE + end for end in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130", "7")}


@dataclass(frozen=True, eq=False)
class SliceHeader:
    """One file of a series. `position` (3,) is the centre of the first voxel and `axes` (2, 3) the unit directions in
    which columns and rows count up, both in DICOM's LPS mm; `pixel_mm` (2,) the steps along them; `size` (columns,
    rows). None where the file does not say. `thickness_mm` is the distance of slices that the file states, if any.
    """

    path: Path
    instance: str
    series: str
    number: str
    description: str
    modality: str
    image_type: str
    size: tuple[int, int]
    frames: int
    samples: int
    position: np.ndarray | None
    axes: np.ndarray | None
    pixel_mm: np.ndarray | None
    thickness_mm: float | None


def slice_headers(folder: Path) -> list[SliceHeader]:
    """The headers of all DICOM images in a folder and the folders in it, each image once.

    Files of other kinds are passed over: reports, structure sets, presentation states, and what is not DICOM.

    Raises:
        UserError: a slice is truncated or damaged.
    """
    found: dict[str, SliceHeader] = {}
    for path in _files(folder):
        if not looks_like_dicom(path):
            continue
        header = _read_header(path)
        if header is not None:
            found.setdefault(header.instance or str(path), header)
    return list(found.values())


def holds_dicom(folder: str | Path) -> bool:
    """Whether a folder, or a folder in it, holds at least one file that begins as DICOM does. Quick: no file is read
    beyond its first bytes."""
    return any(_has_preamble(path) for path in _files(Path(folder)))


def _files(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return found


def looks_like_dicom(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES or _has_preamble(path)


def _has_preamble(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def _read_header(path: Path) -> SliceHeader | None:
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if not _has_preamble(path) or _storage_class(path) in _SLICE_CLASSES:
            raise UserError(f"{path} is truncated or damaged DICOM; copy or export the series again.") from error
        return None
    size = reader.GetSize()
    position, axes = _numbers(reader, "0020|0032", 3), _numbers(reader, "0020|0037", 6)
    pixel = _numbers(reader, "0028|0030", 2)  # between rows first, then between columns
    distance = _numbers(reader, "0018|0088", 1)
    thickness = distance if distance is not None else _numbers(reader, "0018|0050", 1)
    return SliceHeader(
        path=path,
        instance=_text(reader, "0008|0018"),
        series=_text(reader, "0020|000e"),
        number=_text(reader, "0020|0011"),
        description=_text(reader, "0008|103e"),
        modality=_text(reader, "0008|0060"),
        image_type=_text(reader, "0008|0008"),
        size=(int(size[0]), int(size[1])),
        frames=int(size[2]) if len(size) > 2 else 1,
        samples=reader.GetNumberOfComponents(),
        position=position,
        axes=None if axes is None else axes.reshape(2, 3),
        pixel_mm=None if pixel is None else pixel[::-1],
        thickness_mm=None if thickness is None else float(thickness[0]),
    )


def _text(reader: SimpleITK.ImageFileReader, tag: str) -> str:
    if not reader.HasMetaDataKey(tag):
        return ""
    text = reader.GetMetaData(tag)
    raw = text.encode("utf-8", "surrogateescape")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:  # most such files are Latin-1
        text = raw.decode("latin-1")
    return " ".join(text.replace("\0", " ").split())


def _numbers(reader: SimpleITK.ImageFileReader, tag: str, count: int) -> np.ndarray | None:
    """The numbers of a tag, None where it is absent, has another length or holds no finite numbers."""
    try:
        values = np.array([float(part) for part in _text(reader, tag).split("\\")])
    except ValueError:
        return None
    return values if len(values) == count and np.isfinite(values).all() else None


def _storage_class(path: Path) -> str:
    """The Media Storage SOP Class UID of the file meta information, which is explicit little endian in every file."""
    with path.open("rb") as file:
        start = file.read(4096)
    at = start.find(b"\x02\x00\x02\x00UI", _PREAMBLE)
    if at < 0 or len(start) < at + 8:
        return ""
    (length,) = struct.unpack_from("<H", start, at + 6)
    return start[at + 8 : at + 8 + length].decode("ascii", "replace").rstrip("\0 ")
