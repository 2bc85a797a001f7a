"""`adaptmedseg shifts`: what is left of a model's Dice under faults of acquisition and changes of place."""

from pathlib import Path
from typing import Annotated

import typer

from adaptmedseg.cli.common import Device, Seed, Structures, bar, named_pairs, split_names
from adaptmedseg.cli.evaluate import Zoom, check_any, wanted_structures
from adaptmedseg.data.files import write_atomic
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.page import write_page
from adaptmedseg.evaluation.records import results_csv, write_results
from adaptmedseg.evaluation.shifts.page import kept_csv, shifts_page
from adaptmedseg.evaluation.shifts.run import SHIFTS, run_shifts
from adaptmedseg.evaluation.shifts.scene import Shift
from adaptmedseg.evaluation.shifts.summary import kept_dice
from adaptmedseg.evaluation.study import StudyMethod, study_data
from adaptmedseg.inference.loading import load_model

RECORDS = "shifts.jsonl"


def shifts(
    model: Annotated[list[str], typer.Option(help="NAME=MODEL: known name, file or run folder; repeat it to compare.")],
    data: Annotated[list[Path], typer.Option(help="Prepared data set(s).")],
    out: Annotated[Path, typer.Option(help="Folder for scores, figures and the page.")],
    split: Annotated[str, typer.Option(help="Which cases: test or val.")] = "test",
    fold: Annotated[int | None, typer.Option(help="The test cases of this fold instead of a split.", min=0)] = None,
    structures: Structures = None,
    only: Annotated[str | None, typer.Option(help="Names of shifts, separated by commas; all by default.")] = None,
    zoom: Zoom = None,
    base: Annotated[str | None, typer.Option(help="Base of an adapter, where its file has moved.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Score models, asked by name, on unseen cases under shifts: five severities of nine corruptions, rotation, scale,
    flips. Writes shifts.jsonl, shifts.csv, kept.csv and the page shifts.html.

    \b
    Examples:
      adaptmedseg shifts --model base=small --model adapted=runs/my_mri --data prepared/my_mri --out runs/shifts
      adaptmedseg shifts --model m=runs/my_mri --data prepared/my_mri --out runs/shifts --only "noise,motion"
    """
    if (out / RECORDS).exists():
        raise UserError(f"{out}: holds shifts already; choose a new --out")
    chosen = chosen_shifts(only)
    sources = [study_data(path, split, fold) for path in data]
    wanted = wanted_structures(structures, sources)
    methods = [
        StudyMethod(name, loaded, loaded.lineage, zoom=zoom)
        for name, value in named_pairs(model, "--model").items()
        for loaded in [load_model(value, base)]
    ]
    with bar("shifting") as progress:
        records = run_shifts(
            methods, sources, pick_device(device), shifts=chosen, structures=wanted, seed=seed, progress=progress
        )
    check_any(records, data)
    page = shifts_page(records, chosen, seed)
    write_atomic(out / "shifts.csv", results_csv(records))
    write_atomic(out / "kept.csv", kept_csv(kept_dice(records, chosen, seed)))
    html = write_page(out, "shifts", page)
    write_results(out / RECORDS, records)  # last: a folder with scores is complete
    for sentence in page.sentences:
        print(sentence)
    print(html)


def chosen_shifts(only: str | None) -> list[Shift]:
    """The shifts named. UserError for one that there is not."""
    names = split_names(only)
    known = {shift.name: shift for shift in SHIFTS}
    if names is None:
        return list(SHIFTS)
    for name in names:
        if name not in known:
            raise UserError(f"--only: there is no shift '{name}'; there are {', '.join(known)}")
    return [known[name] for name in names]
