"""Getting a published set's files: from the publisher where that takes no login, else from where the user put them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from adaptmedseg.preprocessing.sets.model import DataSet, Download

from adaptmedseg.data.download import OFFLINE, Checksum, check_recorded, download, fetch_text, is_offline
from adaptmedseg.errors import UserError

Say = Callable[[str], None]
Bytes = Callable[[int, int], None]


def fetch_set(known: DataSet, folder: Path, say: Say, progress: Bytes | None = None) -> list[Path]:
    """Fetch a set's files into `folder`; what is there is checked and kept, what is half there goes on.

    The publisher's checksum is used where there is one; else the first file that comes is recorded in FILE.json beside
    it, and later ones are held against that.

    Args:
        known: the set.
        folder: where the files go.
        say: is told licence and login before anything is fetched.
        progress: called with (bytes had, bytes in all) of the file under way.

    Raises:
        UserError: the set takes a login, there is no network, or a file is not the publisher's; the sentence says which
            file to put where.
    """
    say(f"{known.title}: licence {known.stated_licence}.")
    say(f"Login: {known.login or 'none needed'}.")
    if not known.downloads:
        raise UserError(f"{known.name} cannot be fetched without a login ({known.login}); {by_hand(known, folder)}.")
    paths = []
    for file in known.downloads:
        target = folder / file.name
        note = f"put {file.name} from {known.page} at {target} and run again"
        checksum = file.checksum or _recorded_checksum(file, say if not target.exists() else None)
        if not target.exists():
            if is_offline():
                raise UserError(
                    f"{file.name} of {known.name} is not at {folder}, and {OFFLINE} forbids the network; {note}."
                )
            say(f"Fetching {file.url}")
            download(file.url, target, checksum, note, progress)
        check_recorded(target, file.url, checksum)
        paths.append(target)
    return paths


def by_hand(known: DataSet, folder: Path | None = None) -> str:
    """What to do without the network: which files from where, and the layout that is understood."""
    names = ", ".join(file.name for file in known.downloads) or "the files"
    place = f"put {names} into {folder}" if folder else f"get {names}"
    return f"{place} from {known.page} and give the folder or archive with --source (layout: {known.layout})"


def _recorded_checksum(file: Download, say: Say | None) -> Checksum | None:
    """What the publisher's record states for the file; None offline, without a record, or where none is stated."""
    if file.record is None or is_offline() or say is None:
        return None
    try:
        entries = json.loads(fetch_text(file.record))["files"]
        stated = {str(entry["key"]): str(entry["checksum"]) for entry in entries}
        return Checksum.parse(stated[file.name])
    except (OSError, ValueError, KeyError, TypeError):
        say(f"{file.record} states no checksum of {file.name}; the file is recorded as it comes.")
        return None
