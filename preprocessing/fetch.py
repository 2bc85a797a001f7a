"""Getting a published set's files: from the publisher where that takes no login, else from where the user put them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
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
    if not known.downloads and not known.record:
        raise UserError(f"{known.name} cannot be fetched here ({known.login}); {by_hand(known, folder)}.")
    paths = []
    for file in _files(known, folder, say):
        target = folder / file.name
        note = f"put {file.name} from {known.page} at {target} and run again"
        found = None
        if not target.exists():
            if is_offline():
                raise UserError(f"{target} is not there, and {OFFLINE} forbids the network; {note}.")
            say(f"Fetching {file.url}")
            found = download(file.url, target, file.checksum, note, progress)
        check_recorded(target, file.url, file.checksum, found)
        paths.append(target)
    return paths


def by_hand(known: DataSet, folder: Path | None = None) -> str:
    """What to do without the network: which files from where, and the layout that is understood."""
    names = ", ".join(file.name for file in known.downloads) or "the files"
    place = f"put {names} into {folder}" if folder else f"get {names}"
    return f"{place} from {known.page} and give the folder or archive with --source (layout: {known.layout})"


def _files(known: DataSet, folder: Path, say: Say) -> list[Download]:
    """The files to fetch, with the checksums of the publisher's record where there is one.

    The record is asked only for what is not there yet; a set whose files it alone names needs it.
    """
    missing = [file for file in known.downloads if not (folder / file.name).exists()]
    if not known.record or (known.downloads and not missing):
        return list(known.downloads)
    try:
        if is_offline():
            raise OSError(f"{OFFLINE} forbids the network")
        stated = {file.name: file for file in _record(fetch_text(known.record))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not known.downloads:
            raise UserError(f"{known.record} cannot be read ({error}); {by_hand(known, folder)}.") from error
        say(f"{known.record} cannot be read, so that no checksum is known; files are recorded as they come.")
        return list(known.downloads)
    if not known.downloads:
        return list(stated.values())
    return [
        replace(file, checksum=stated[file.name].checksum) if file.name in stated else file for file in known.downloads
    ]


def _record(text: str) -> list[Download]:
    """The files of a Zenodo record. Raises ValueError, KeyError or TypeError for a text of another form."""
    return [
        Download(Path(str(entry["key"])).name, str(entry["links"]["self"]), Checksum.parse(str(entry["checksum"])))
        for entry in json.loads(text)["files"]
    ]
