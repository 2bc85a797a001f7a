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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from adaptmedseg.data.zip_member import CHUNK, member_chunks
from adaptmedseg.errors import UserError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz")
Wanted = Callable[[str], bool]
# Label maps are nearly empty and shrink a hundredfold, whole archives of images do not.
_MAX_RATIO = 200
_RATIO_FROM_BYTES = 1 << 30
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


@dataclass(frozen=True)
class _Member:
    """A file of an archive: its name, its size unpacked as the archive states it, and its contents in pieces."""

    name: str
    size: int
    pieces: Callable[[], Iterator[bytes]]


def is_archive(path: Path) -> bool:
    """Whether the file's name is that of an archive that can be opened."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


@contextmanager
def opened_source(
    source: str | Path, *, folder: Path | None = None, wanted: Wanted = lambda name: True, workers: int = 1
) -> Iterator[Path]:
    """Give the folder to read from: `source` itself, or an archive's contents.

    Args:
        source: a folder or an archive.
        folder: where to unpack an archive; files that lie there whole are kept, and the caller clears it. None
            unpacks into a temporary folder, which is removed afterwards.
        wanted: which members are needed, by their names in the archive; the others are left packed.
        workers: threads that unpack a .zip; other archives are one stream.

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
            unpack(source, Path(temporary), wanted, workers)
            with naming_archive(source, Path(temporary)):
                yield Path(temporary)
    else:
        unpack(source, folder, wanted, workers)
        with naming_archive(source, folder):
            yield folder


@contextmanager
def naming_archive(source: Path, folder: Path) -> Iterator[None]:
    """Put the archive in place of the folder it was unpacked to in sentences: the user knows the archive alone."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(folder), str(source))) from error


def unpack(archive: Path, folder: Path, wanted: Wanted = lambda name: True, workers: int = 1) -> None:
    """Unpack an archive's wanted members into `folder`, which may hold some of them already; `workers` as above.

    Nothing is written outside `folder`. Every file appears whole or not at all.

    Raises:
        UserError: the file is no archive, is damaged or encrypted, names a path outside itself or one path twice,
            holds a link or a device, or would need more space than is free or than any honest archive.
    """
    try:
        if _is_zip(archive):
            with zipfile.ZipFile(archive) as file:
                _extract_all(archive, list(_zip_members(archive, file)), folder, wanted, workers)
        elif is_archive(archive):
            with tarfile.open(archive) as tar:
                _extract_stream(archive, _tar_members(archive, tar), folder, wanted)
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


def _is_zip(archive: Path) -> bool:
    """Whether a file is a .zip, by how it starts. Its end does not tell: a .tar may end with a .zip that it holds."""
    with archive.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _zip_members(archive: Path, file: zipfile.ZipFile) -> Iterator[_Member]:
    for info in file.infolist():
        if info.is_dir():
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _link(archive, info.filename)
        yield _Member(info.filename, info.file_size, partial(member_chunks, file, info))


def _tar_members(archive: Path, tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        if info.isdir():
            continue
        if info.issym() or info.islnk():
            raise _link(archive, info.name)
        if not info.isfile():
            raise UserError(f"{archive} is unsafe: its entry {info.name!r} is a device; do not use this archive.")
        yield _Member(info.name, info.size, partial(_tar_pieces, tar, info))
    if archive.name.lower().endswith(".tar"):  # packed ones check their own end; here tarfile takes any end for the end
        with archive.open("rb") as file:
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("it ends early")


def _tar_pieces(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    stream = tar.extractfile(info)
    assert stream is not None  # as it is a file
    while piece := stream.read(CHUNK):
        yield piece


def _extract_all(archive: Path, members: list[_Member], folder: Path, wanted: Wanted, workers: int) -> None:
    """Check all members, then write the wanted ones side by side: unpacking does not hold the interpreter."""
    chosen = [(member, place) for member, place in _checked(archive, members) if wanted(member.name)]
    _check_size(archive, sum(member.size for member, _ in chosen), folder)
    missing = [(member, folder / place) for member, place in chosen if not _is_there(member, folder / place)]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for _ in pool.map(lambda job: _write(archive, *job), missing):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def _extract_stream(archive: Path, members: Iterator[_Member], folder: Path, wanted: Wanted) -> None:
    """Check and write members as they come; what they need is added up on the way."""
    total = 0
    for member, place in _checked(archive, members):
        if wanted(member.name) and not _is_there(member, folder / place):
            total += member.size
            _check_size(archive, total, folder, being_written=member.size)
            _write(archive, member, folder / place)


def _checked(archive: Path, members: Iterable[_Member]) -> Iterator[tuple[_Member, PurePosixPath]]:
    """Members with safe places; UserError for one that points outside or comes twice."""
    seen: set[PurePosixPath] = set()
    for member in members:
        place = _safe_path(archive, member.name)
        if place in seen:
            raise UserError(f"{archive} is unsafe: it holds {member.name!r} twice; do not use this archive.")
        seen.add(place)
        yield member, place


def _is_there(member: _Member, target: Path) -> bool:
    return target.is_file() and target.stat().st_size == member.size


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
        with unfinished.open("wb") as file:
            for piece in member.pieces():
                written += len(piece)
                if written > member.size:
                    raise UserError(f"{archive} is unsafe: {member.name!r} is larger than stated; do not use it.")
                file.write(piece)
        if written < member.size:
            raise EOFError(f"{member.name} ends early")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _link(archive: Path, name: str) -> UserError:
    return UserError(f"{archive} holds the link {name!r}; unpack it yourself and name the folder.")
