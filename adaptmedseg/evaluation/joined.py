"""Several evaluations as one, so that one report compares them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from adaptmedseg.data.files import write_atomic
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import read_scores
from adaptmedseg.evaluation.study import INDEX, OVERLAYS, RESULTS, read_notes, read_overlay_index, save_study


def join_studies(folders: Sequence[Path], out: Path) -> None:
    """Write scores, notes and pictures of all FOLDERS into OUT. UserError where OUT holds something, and for a method
    that two of them scored, as nobody could tell the two apart."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds something else; choose a new folder for --out")
    studies = [(folder, read_scores(folder / RESULTS), read_notes(folder)) for folder in folders]
    owner: dict[str, Path] = {}
    for folder, records, _ in studies:
        for method in {record.method for record in records}:
            if owner.setdefault(method, folder) != folder:
                raise UserError(
                    f"{folder}: '{method}' was scored in {owner[method]} too; evaluate it under another name"
                )
    index = []
    for number, (folder, _, _) in enumerate(studies):
        for entry in read_overlay_index(folder):
            file = f"{number}-{entry['file']}"
            if (folder / OVERLAYS / entry["file"]).is_file():
                (out / OVERLAYS).mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / OVERLAYS / entry["file"], out / OVERLAYS / file)
                index.append(entry | {"file": file})
    write_atomic(out / OVERLAYS / INDEX, json.dumps(index, indent=1))
    for _, records, notes in studies:
        save_study(out, records, notes, append=True)
