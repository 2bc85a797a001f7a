"""Fetch large files: each goes on where it stopped, appears whole or not at all, and is checked at every use."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adaptmedseg.data.files import write_atomic
from adaptmedseg.errors import UserError

CACHE, OFFLINE = "ADAPTMEDSEG_CACHE", "ADAPTMEDSEG_OFFLINE"
CHUNK = 1 << 20
SECONDS = 30
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416
_ALGORITHMS = {"sha256": "SHA-256", "md5": "MD5"}


@dataclass(frozen=True)
class Checksum:
    """A publisher's statement on a file: `algorithm` 'sha256' or 'md5' and the hexadecimal `digest`."""

    algorithm: str
    digest: str

    def __str__(self) -> str:
        return f"{_ALGORITHMS[self.algorithm]} {self.digest[:12]}…"

    @classmethod
    def of(cls, path: Path, algorithm: str) -> Checksum:
        """The checksum of a file on disk."""
        with path.open("rb") as file:
            return cls(algorithm, hashlib.file_digest(file, algorithm).hexdigest())

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """'md5:0123…' as publishers' records write it. Raises ValueError for another form or algorithm."""
        algorithm, _, digest = text.lower().partition(":")
        if algorithm not in _ALGORITHMS or len(digest) != 2 * hashlib.new(algorithm).digest_size:
            raise ValueError(f"{text!r} is no checksum")
        return cls(algorithm, digest)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file."""
    return Checksum.of(Path(path), "sha256").digest


def cache_folder() -> Path:
    """Where fetched files are kept: the folder named by ADAPTMEDSEG_CACHE, else the platform's for caches."""
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE])
    if sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "adaptmedseg"


def is_offline() -> bool:
    """Whether ADAPTMEDSEG_OFFLINE forbids the network."""
    return os.environ.get(OFFLINE, "").strip().lower() not in ("", "0", "false", "no")


def download(
    url: str,
    target: Path,
    checksum: Checksum | None,
    by_hand: str,
    progress: Callable[[int, int], None] | None = None,
) -> Checksum:
    """Fetch `url` to `target` and give its checksum; what has come stays in TARGET.partial, where a later call goes on.

    `checksum` is checked where it is given, and a file with another one is deleted. `by_hand` ends the sentences of
    errors: what to do without network. Raises UserError for errors of network, disk and content.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        total = _receive(url, partial, progress)
    except urllib.error.HTTPError as error:
        raise UserError(
            f"{url}: the server answers {error.code} {error.reason}; try again later, or {by_hand}"
        ) from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise UserError(f"{url}: cannot be reached ({reason}); try again with a network, or {by_hand}") from None
    except OSError as error:
        raise UserError(f"{partial}: cannot be written ({error.strerror}); free some space and run again") from None
    have = partial.stat().st_size
    if total is not None and have < total:
        raise UserError(f"{url}: the connection ended after {have} of {total} bytes; run again to go on from there")
    found = Checksum.of(partial, checksum.algorithm if checksum else "sha256")
    wrong = checksum is not None and found != checksum
    if wrong or (total is not None and have > total):
        partial.unlink()
        expected = f"{found}, not {checksum}" if wrong else "longer than announced"
        raise UserError(f"{url}: what came is not the publisher's file ({expected}); try again later, or {by_hand}")
    os.replace(partial, target)
    return found


def check_recorded(path: Path, url: str, publisher: Checksum | None, found: Checksum | None = None) -> None:
    """Hold a fetched file against the publisher's checksum, or else against the one recorded when it was first seen.

    The record is FILE.json beside the file; it is written at the first call. `found` is the file's checksum where it is
    known already, as from `download`.

    Raises:
        UserError: the file changed, or the record is damaged.
    """
    note = path.with_name(path.name + ".json")
    expected, whose = publisher, "the publisher's"
    if expected is None and note.exists():
        try:
            expected, whose = (
                Checksum("sha256", json.loads(note.read_text(encoding="utf-8"))["sha256"]),
                f"the one in {note.name}",
            )
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{note}: is damaged; delete it to have {path.name} recorded anew") from None
    found = found or Checksum.of(path, expected.algorithm if expected else "sha256")
    if expected is not None and found != expected:
        raise UserError(
            f"{path}: its {_ALGORITHMS[found.algorithm]} is {found.digest[:12]}…, not {whose} {expected.digest[:12]}…; "
            "delete the file and fetch it again"
        )
    if not note.exists():
        stated = f"{publisher.algorithm}:{publisher.digest}" if publisher else None
        digest = found.digest if found.algorithm == "sha256" else file_hash(path)
        record = {"url": url, "sha256": digest, "bytes": path.stat().st_size, "publisher": stated}
        write_atomic(note, json.dumps(record, indent=1) + "\n")


def fetch_text(url: str, limit: int = CHUNK) -> str:
    """A small text from the network, cut at `limit` bytes.

    Raises:
        OSError: no network, a refusal of the server, or a broken connection.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "adaptmedseg"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return response.read(limit).decode("utf-8", "replace")
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error


def _receive(url: str, partial: Path, progress: Callable[[int, int], None] | None) -> int | None:
    """Append what is missing; returns the file's full size where the server tells it."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "adaptmedseg"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE or not have:
            raise
        if _full_size(error.headers.get("Content-Range")) == have:
            return have
        partial.unlink()  # longer than the server's file: what was begun was another file
        return _receive(url, partial, progress)
    with response:
        going_on = response.status == PARTIAL_CONTENT
        length = response.headers.get("Content-Length")
        total = _full_size(response.headers.get("Content-Range")) if going_on else int(length) if length else None
        have = have if going_on else 0
        with partial.open("ab" if going_on else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, total or have)
    return total


def _full_size(content_range: str | None) -> int | None:
    """'bytes 5-9/10' or 'bytes */10' to 10."""
    size = (content_range or "").rpartition("/")[2]
    return int(size) if size.isdecimal() else None
