"""Sources that come as an archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz), unpacked safely and as far as needed."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from adaptmedseg.errors import UserError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz")
Wanted = Callable[[str], bool]
_CHUNK = 1 << 20
# Label maps are nearly empty and shrink a hundredfold, whole archives of images do not.
_MAX_RATIO = 200
_RATIO_FROM_BYTES = 1 << 30
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


@dataclass(frozen=True)
class _Member:
    """A file of an archive: its name, its size unpacked as the archive states it, and how to read it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Whether the file's name is that of an archive that can be opened."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


@contextmanager
def opened_source(
    source: str | Path, *, folder: Path | None = None, wanted: Wanted = lambda name: True
) -> Iterator[Path]:
    """Give the folder to read from: `source` itself, or an archive's contents.

    Args:
        source: a folder or an archive.
        folder: where to unpack an archive; files that lie there whole are kept, and the caller clears it. None
            unpacks into a temporary folder, which is removed afterwards.
        wanted: which members are needed, by their names in the archive; the others are left packed.

    Raises:
        UserError: `source` is missing, is neither a folder nor an archive, or is an unsafe or damaged archive.
    """
    source = Path(source)
    if source.is_dir():
        yield source
        return
    if not source.exists():
        raise UserError(f"{source} does not exist; check the path.")
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="adaptmedseg-") as temporary:
            unpack(source, Path(temporary), wanted)
            with naming_archive(source, Path(temporary)):
                yield Path(temporary)
    else:
        unpack(source, folder, wanted)
        with naming_archive(source, folder):
            yield folder


@contextmanager
def naming_archive(source: Path, folder: Path) -> Iterator[None]:
    """Put the archive in place of the folder it was unpacked to in sentences: the user knows the archive alone."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(folder), str(source))) from error


def unpack(archive: Path, folder: Path, wanted: Wanted = lambda name: True) -> None:
    """Unpack an archive's wanted members into `folder`, which may hold some of them already.

    Nothing is written outside `folder`. Every file appears whole or not at all.

    Raises:
        UserError: the file is no archive, is damaged or encrypted, names a path outside itself or one path twice,
            holds a link or a device, or would need more space than is free or than any honest archive.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                _extract(archive, list(_zip_members(archive, file)), folder, wanted)
        elif is_archive(archive):
            with tarfile.open(archive) as tar:
                _extract(archive, _tar_members(archive, tar), folder, wanted)
        else:
            raise UserError(f"{archive} is neither a folder nor a .zip or .tar archive; unpack it and name the folder.")
    except _DAMAGED as error:
        raise UserError(f"{archive} is a damaged archive ({error}); download or copy it again.") from error
    except RuntimeError as error:  # how zipfile reports a password
        raise UserError(f"{archive} is encrypted; unpack it and name the folder.") from error
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's own errors
            raise UserError(f"{archive} is a damaged archive ({error}); download or copy it again.") from error
        raise


def _zip_members(archive: Path, file: zipfile.ZipFile) -> Iterator[_Member]:
    for info in file.infolist():
        if info.is_dir():
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _link(archive, info.filename)
        yield _Member(info.filename, info.file_size, partial(file.open, info))


def _tar_members(archive: Path, tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        if info.isdir():
            continue
        if info.issym() or info.islnk():
            raise _link(archive, info.name)
        if not info.isfile():
            raise UserError(f"{archive} is unsafe: its entry {info.name!r} is a device; do not use this archive.")
        yield _Member(info.name, info.size, partial(_tar_stream, tar, info))
    if archive.name.lower().endswith(".tar"):  # packed ones check their own end; here tarfile takes any end for the end
        with archive.open("rb") as file:
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("it ends early")


def _tar_stream(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    assert stream is not None  # as it is a file
    return stream


def _extract(archive: Path, members: list[_Member] | Iterator[_Member], folder: Path, wanted: Wanted) -> None:
    """Check every member and write the wanted ones. A list is added up first; a stream is added up on the way."""
    if isinstance(members, list):
        _check_size(archive, sum(member.size for member in members if wanted(member.name)), folder)
    seen: set[str] = set()
    total = 0
    for member in members:
        place = _safe_path(archive, member.name)
        if str(place) in seen:
            raise UserError(f"{archive} is unsafe: it holds {member.name!r} twice; do not use this archive.")
        seen.add(str(place))
        if not wanted(member.name):
            continue
        target = folder / place
        if target.is_file() and target.stat().st_size == member.size:
            continue
        if not isinstance(members, list):
            total += member.size
            _check_size(archive, total, folder, being_written=member.size)
        _write(archive, member, target)


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0] or "\0" in name:
        raise UserError(f"{archive} is unsafe: its entry {name!r} points outside; do not use this archive.")
    return path


def _check_size(archive: Path, needed: int, folder: Path, being_written: int | None = None) -> None:
    """Refuse bombs and what does not fit. `needed` counts all bytes, `being_written` those not on the disk yet."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > max(_RATIO_FROM_BYTES, _MAX_RATIO * archive.stat().st_size):
        raise UserError(
            f"{archive} is unsafe: it unpacks to more than {_MAX_RATIO} times its size; do not use this archive."
        )
    if (needed if being_written is None else being_written) > free:
        sizes = f"{needed / 1e9:.1f} GB where {free / 1e9:.1f} GB are free"
        raise UserError(f"{archive} unpacks to {sizes}; free some space.")


def _write(archive: Path, member: _Member, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".partial")
    written = 0
    try:
        with member.open() as source, unfinished.open("wb") as file:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > member.size:
                    raise UserError(f"{archive} is unsafe: {member.name!r} is larger than stated; do not use it.")
                file.write(chunk)
        if written < member.size:
            raise EOFError(f"{member.name} ends early")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _link(archive: Path, name: str) -> UserError:
    return UserError(f"{archive} holds the link {name!r}; unpack it yourself and name the folder.")
