"""`adaptmedseg adapters tokens` and `probe`: where a model's tokens lie, and what they are worth."""

from pathlib import Path
from typing import Annotated

import typer

from adaptmedseg.cli.common import Device, Seed, bar
from adaptmedseg.data.files import write_atomic
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.probe import RIGHT, ProbeRow, probe_csv, summarise
from adaptmedseg.evaluation.probe import probe as run_probe
from adaptmedseg.evaluation.study import study_data
from adaptmedseg.evaluation.token_space import Token, learnt_tokens, map_tokens, posterior_tokens
from adaptmedseg.inference.loading import load_model
from adaptmedseg.models.adapted import AdaptedSegVol

Base = Annotated[str | None, typer.Option(help="Base of the adapter, where its file has moved.")]
Data = Annotated[list[Path], typer.Option(help="Prepared data set(s).")]
Fold = Annotated[int | None, typer.Option(help="The test cases of this fold instead of a split.", min=0)]


def _folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a folder for --out")


def tokens(
    file: Annotated[str, typer.Argument(help="An adapter file or a run folder.")],
    out: Annotated[Path, typer.Option(help="Folder for tokens.png and tokens.csv.")],
    data: Data = [],  # noqa: B006
    split: Annotated[str, typer.Option(help="Which cases of --data: test or val.")] = "test",
    fold: Fold = None,
    base: Base = None,
    device: Device = "auto",
) -> None:
    """Draw the space of a model's tokens: principal components, colours for anatomy, markers for modality.

    With --data also the task tokens after they looked at each image.

    \b
    Example:
      adaptmedseg adapters tokens runs/my_mri --data prepared/my_mri --out runs/tokens
    """
    _folder(out)
    loaded = load_model(file, base)
    if not isinstance(loaded.model, AdaptedSegVol):
        raise UserError(f"{file}: is no adapter; give an adapter file or the folder of its run")
    found: list[Token] = learnt_tokens(loaded.model)
    if data:
        cases = [case for path in data for case in study_data(path, split, fold).cases]
        with bar("fusing") as progress:
            found += posterior_tokens(loaded, cases, pick_device(device), progress)
    drawn = map_tokens(found)
    write_atomic(out / "tokens.png", drawn.png)
    write_atomic(out / "tokens.csv", drawn.csv)
    print(out / "tokens.png")


def probe(
    file: Annotated[str, typer.Argument(help="An adapter file or a run folder.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for probe.csv.")],
    split: Annotated[str, typer.Option(help="Which cases: test or val.")] = "test",
    fold: Fold = None,
    base: Base = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Dice with the right tokens, and how it changes with those of another modality, of another task, or without.

    \b
    Example:
      adaptmedseg adapters probe runs/my_mri --data prepared/my_mri --out runs/probe
    """
    _folder(out)
    loaded = load_model(file, base)
    sources = [study_data(path, split, fold) for path in data]
    cases = [(source.dataset.name, case) for source in sources for case in source.cases]
    with bar("probing") as progress:
        scores = run_probe(loaded, cases, pick_device(device), progress)
    write_atomic(out / "probe.csv", probe_csv(scores))
    for line in table(summarise(scores, seed)):
        print(line)


def table(rows: list[ProbeRow]) -> list[str]:
    """The summary as lines of text."""
    width = max(len(row.tokens) for row in rows)
    looks = max(len("modality"), *(len(row.modality) for row in rows))
    lines = [f"{'modality':{looks}}  {'tokens':{width}}  {'n':>4}  {'Dice':>6}  {'change':>7}  95 % interval"]
    for row in rows:
        change = "" if row.tokens == RIGHT else f"{row.change:+.3f}"
        interval = "" if row.interval is None else f"{row.interval[0]:+.3f} to {row.interval[1]:+.3f}"
        scores = f"{row.n:4}  {row.dice:6.3f}  {change:>7}  {interval}".rstrip()
        lines.append(f"{row.modality:{looks}}  {row.tokens:{width}}  {scores}")
    return lines
