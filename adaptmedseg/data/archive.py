"""Sources that come as a .zip archive, unpacked safely to a temporary folder."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from adaptmedseg.errors import UserError


@contextmanager
def opened_source(source: str | Path) -> Iterator[Path]:
    """Give the folder to read from: `source` itself, or the unpacked contents of a .zip, removed afterwards.

    Raises:
        UserError: `source` is missing, is neither a folder nor a .zip, or is an unsafe or damaged archive.
    """
    source = Path(source)
    if source.is_dir():
        yield source
        return
    if not source.exists():
        raise UserError(f"{source} does not exist; check the path.")
    if not zipfile.is_zipfile(source):
        raise UserError(f"{source} is neither a folder nor a .zip archive; unpack it and name the folder.")
    with tempfile.TemporaryDirectory(prefix="adaptmedseg-") as folder:
        unpack(source, Path(folder))
        try:
            yield Path(folder)
        except UserError as error:  # the user knows the archive, not the temporary folder
            raise UserError(str(error).replace(folder, str(source))) from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip into `folder`; nothing is written outside it, and links are refused.

    Raises:
        UserError: the archive is damaged, names a path outside itself, holds a link, or needs more space than is free.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            for member in members:
                _refuse_unsafe(archive, member)
            needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
            if needed > free:
                sizes = f"{needed / 1e9:.1f} GB where {free / 1e9:.1f} GB are free"
                raise UserError(f"{archive} unpacks to {sizes}; free some space.")
            file.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{archive} is a damaged archive ({error}); download or copy it again.") from error
    except RuntimeError as error:  # how zipfile reports a password
        raise UserError(f"{archive} is encrypted; unpack it and name the folder.") from error


def _refuse_unsafe(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise UserError(f"{archive} is unsafe: its entry {member.filename!r} points outside; do not use this archive.")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"{archive} holds the link {member.filename!r}; unpack it yourself and name the folder.")
