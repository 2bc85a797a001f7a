"""Fetch one large file: goes on where it stopped, appears whole or not at all."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from adaptmedseg.errors import UserError

CHUNK = 1 << 20
SECONDS = 30
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str, target: Path, sha256: str | None, by_hand: str, progress: Callable[[int, int], None] | None = None
) -> str:
    """Fetch `url` to `target` and give its SHA-256; what has come stays in TARGET.partial, where a later call goes on.

    `sha256` is checked where it is given, and a file with another one is deleted. `by_hand` ends the sentences of
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
    found = file_hash(partial)
    if (sha256 is not None and found != sha256) or (total is not None and have > total):
        partial.unlink()
        expected = "longer than announced" if sha256 is None else f"SHA-256 {found[:12]}…, not {sha256[:12]}…"
        raise UserError(f"{url}: what came is not the publisher's file ({expected}); try again later, or {by_hand}")
    os.replace(partial, target)
    return found


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
