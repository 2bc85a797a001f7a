"""Which file is the image: the one rule by which images are hashed, in prepared sets, in `check` and beside masks."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path

from adaptmedseg.data.files import file_sha256
from adaptmedseg.errors import UserError

_METAIMAGE_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4,
    "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip


def source_sha256(path: Path) -> str:
    """The SHA-256 of what holds an image's voxels, which a copy under another name shares.

    For a MetaImage header that is the data file it names; for a folder all its files, with their names.

    Raises:
        UserError: as `voxel_file`.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listed = "".join(f"{file.relative_to(path).as_posix()} {file_sha256(file)}\n" for file in files)
        return hashlib.sha256(listed.encode()).hexdigest()
    return file_sha256(voxel_file(path))


def voxel_file(path: Path) -> Path:
    """The file that holds a volume's voxels: a MetaImage header's data file, or the file itself.

    Raises:
        UserError: the header names no single file, a file elsewhere, or one that is not there or too short.
    """
    if path.suffix.lower() != ".mhd" or not path.is_file():
        return path
    header = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", path.read_bytes().decode("latin-1"), re.MULTILINE))
    name = header.get("ElementDataFile", "")
    if name.upper() == "LOCAL":
        return path
    if not name or Path(name).name != name:
        raise UserError(f"{path} names the data file {name!r}, which is no single file beside it; convert it to .mha.")
    data = path.with_name(name)
    if not data.is_file():
        raise UserError(f"{path} names the data file {name}, which is missing; copy both files.")
    stated, held = _stated_bytes(header), data.stat().st_size
    if held < stated:
        raise UserError(f"{data} is truncated or damaged: {held:,} bytes of {stated:,}; copy or export it again.")
    return data


def _stated_bytes(header: Mapping[str, str]) -> int:
    """The least size of the data file that a MetaImage header describes; 0 where it is compressed or not said."""
    width = _METAIMAGE_BYTES.get(header.get("ElementType", "").upper(), 0)
    try:
        shape = [int(size) for size in header.get("DimSize", "0").split()]
        channels = int(header.get("ElementNumberOfChannels", "1"))
    except ValueError:
        return 0  # the reader says what is wrong with such a header
    return 0 if header.get("CompressedData", "").lower() == "true" else width * channels * math.prod(shape)
