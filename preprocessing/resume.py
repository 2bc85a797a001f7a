"""Finished cases of a preparation that was interrupted, so that a later run goes on instead of starting again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adaptmedseg.data.files import write_atomic


class Unfinished:
    """The folder ``OUT.unfinished`` beside the output of a preparation.

    A case's arrays are written under ``new/`` and renamed to ``cases/`` when they are whole; its manifest entry follows
    as ``entries/ID.json`` together with a key over everything that the case depends on. A case counts as finished
    where both are there and the key is the one asked for. ``unpacked/`` is for archives.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(out.name + ".unfinished")

    @property
    def unpacked(self) -> Path:
        """Where an archive of this preparation is unpacked."""
        return self.folder / "unpacked"

    def unpacked_for(self, archive: Path) -> Path:
        """The folder to unpack an archive to; what another archive left there is removed."""
        stat = archive.stat()
        mark, text = self.unpacked / ".archive", f"{archive.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if self.unpacked.exists() and (not mark.is_file() or mark.read_text(encoding="utf-8") != text):
            shutil.rmtree(self.unpacked)
        write_atomic(mark, text)
        return self.unpacked

    def finished(self, case_id: str, key: str) -> dict[str, Any] | None:
        """The manifest entry of a case that an earlier run finished, or None."""
        path = self._entry(case_id)
        if not path.is_file() or not (self.folder / "cases" / case_id).is_dir():
            return None
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return None
        return stored["entry"] if isinstance(stored, dict) and stored.get("key") == key else None

    def write(self, case_id: str, key: str, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Write one case with `write`, which is given the case's folder to make, and keep it with its entry."""
        new, done = self.folder / "new" / case_id, self.folder / "cases" / case_id
        for left in (new, done):
            shutil.rmtree(left, ignore_errors=True)
        self._entry(case_id).unlink(missing_ok=True)
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            entry = write(new)
            done.parent.mkdir(parents=True, exist_ok=True)
            os.replace(new, done)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        write_atomic(self._entry(case_id), json.dumps({"key": key, "entry": entry}))
        return json.loads(json.dumps(entry))  # as a later run will read it

    def count(self) -> int:
        """How many finished cases are kept."""
        return sum(1 for _ in (self.folder / "entries").glob("*.json"))

    def hand_over(self, case_ids: list[str], target: Path) -> None:
        """Move the finished cases' folders into `target`."""
        target.mkdir(parents=True, exist_ok=True)
        for case_id in case_ids:
            os.replace(self.folder / "cases" / case_id, target / case_id)

    def close(self, *, keep: bool) -> None:
        """Remove the folder; with `keep`, only what is unpacked, unless no case is finished."""
        shutil.rmtree(self.folder / "new", ignore_errors=True)
        shutil.rmtree(self.unpacked if keep and self.count() else self.folder, ignore_errors=True)

    def _entry(self, case_id: str) -> Path:
        return self.folder / "entries" / f"{case_id}.json"


def case_key(parts: Mapping[str, Any]) -> str:
    """A hash over everything that a prepared case depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
