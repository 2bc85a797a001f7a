"""`adaptmedseg transfer`: does what was learned on CT help on MRI, and at what price? Read from finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from adaptmedseg.cli.common import Seed, named_pairs
from adaptmedseg.comparison.finished import Finished, FinishedRun
from adaptmedseg.comparison.reading import read_finished
from adaptmedseg.comparison.transfer import study_transfer
from adaptmedseg.comparison.transfer_page import check_out, write_transfer
from adaptmedseg.comparison.transfer_sentences import caveats, sentences
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.metrics import MeasureSettings
from adaptmedseg.evaluation.nnunet import nnunet_records
from adaptmedseg.evaluation.study import study_data


def transfer(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `compare` or `evaluate` wrote, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the report.")],
    nnunet: Annotated[
        list[str],
        typer.Option(help="NAME=SOURCE: nnU-Net's folder of predicted masks, or its summary.json; repeat it."),
    ] = [],  # noqa: B006
    data: Annotated[
        list[Path], typer.Option(help="Prepared data set(s) of --nnunet, where no comparison names them.")
    ] = [],  # noqa: B006
    base: Annotated[
        str | None, typer.Option(help="What changes are counted from; by default the strategy without training.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="Tested against; the base by default.")] = None,
    title: Annotated[str, typer.Option(help="The report's title.")] = "Transfer study",
    seed: Seed = 0,
) -> None:
    """Judge strategies on new and old data, data sets, structures and sites, and by number of patients trained on.

    Reads scores that are there and trains nothing. Comparisons that differ in patients make learning curves, those
    that differ in folds are joined: prepared with --folds sites, each site is judged by trainings that never saw it.
    What is missing is counted and told (docs/evaluation.md).

    \b
    Examples:
      adaptmedseg transfer runs/compare --out runs/transfer --reference unet
      adaptmedseg transfer runs/compare --nnunet nnU-Net=predictions/fold_0 --out runs/transfer
    """
    check_out(out)
    found = read_finished(runs)
    for name, source in named_pairs(nnunet, "--nnunet").items():
        _add_nnunet(found, name, Path(source), data)
    study = study_transfer(found, base, reference, seed)
    paths = write_transfer(out, study, found, title)
    for sentence in [*sentences(study, found), *caveats(study, found)]:
        print(sentence)
    print(paths.html)


def _add_nnunet(found: Finished, name: str, source: Path, data: list[Path]) -> None:
    if name in found.strategies:
        raise UserError(f"--nnunet {name}: another strategy is called so; choose another name")
    sources = [study_data(path, "test", None) for path in data] or list(found.sources.values())
    if not sources:
        raise UserError(f"--nnunet {name}={source}: name the prepared data that hold the truth with --data")
    records = nnunet_records(name, source, sources, _measures_of(found))
    found.add(FinishedRun(name, records, folder=source, evaluated=True))
    found.scratch.add(name)
    found.notes.methods[name] = (
        f"nnU-Net's own results, read from {source.name}; that it was not trained on these cases cannot be checked here"
    )


def _measures_of(found: Finished) -> MeasureSettings:
    """How the scores beside nnU-Net's measure surfaces, so that all stand in one table; the default where they differ
    among themselves or say nothing."""
    extras = [record.extra for run in found.runs for record in run.records]
    ways = {(e["nsd_tolerance_mm"], e["surface_elements"]) for e in extras if "surface_elements" in e}
    return MeasureSettings(*ways.pop()) if len(ways) == 1 else MeasureSettings()
