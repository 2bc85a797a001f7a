"""Which file is the image: the one rule by which images are hashed, in prepared sets, in `check` and beside masks."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from adaptmedseg.data.files import file_sha256
from adaptmedseg.errors import UserError


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
    return data
