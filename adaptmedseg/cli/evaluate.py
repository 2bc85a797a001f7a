"""`adaptmedseg evaluate` and `adaptmedseg report`: scores on unseen cases, and what to make of them."""

from pathlib import Path
from typing import Annotated, cast

import typer

from adaptmedseg.cli.common import Device, Seed, Structures, bar, named_pairs, split_names
from adaptmedseg.data.registry import default_registry
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.evaluate import Ask, mean_dice
from adaptmedseg.evaluation.study import (
    RESULTS,
    StudyData,
    StudyMethod,
    StudyNotes,
    compare_gated,
    data_notes,
    draw_overlays,
    run_study,
    save_study,
    study_data,
)
from adaptmedseg.evaluation.study_report import ReportText, report_study
from adaptmedseg.inference.loading import load_model


def evaluate(
    model: Annotated[list[str], typer.Option(help="NAME=MODEL: known name, file or run folder; repeat it to compare.")],
    data: Annotated[list[Path], typer.Option(help="Prepared data set(s).")],
    out: Annotated[Path, typer.Option(help="Folder for scores and pictures.")],
    split: Annotated[str, typer.Option(help="Which cases: test or val.")] = "test",
    fold: Annotated[int | None, typer.Option(help="The test cases of this fold instead of a split.", min=0)] = None,
    structures: Structures = None,
    ask: Annotated[str, typer.Option(help="'text', or 'oracle box': the truth's own box, an upper bound.")] = "text",
    base: Annotated[str | None, typer.Option(help="Base of an adapter, where its file has moved.")] = None,
    append: Annotated[bool, typer.Option(help="Add to the scores in --out (other folds, other models).")] = False,
    device: Device = "auto",
) -> None:
    """Score models on cases that none of them was trained on; the last one's masks are drawn.

    \b
    Examples:
      adaptmedseg evaluate --model base=small --model adapted=runs/my_mri --data prepared/my_mri --out runs/eval
      adaptmedseg evaluate --model adapted=runs/fold1 --data prepared/promise12 --fold 1 --out runs/eval --append
    """
    if (out / RESULTS).exists() and not append:
        raise UserError(f"{out}: holds another evaluation; choose a new --out, or add to it with --append")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a folder for --out")
    if ask not in ("text", "oracle box"):
        raise UserError(f"--ask {ask}: choose text or 'oracle box'")
    sources = [study_data(path, split, fold) for path in data]
    wanted = wanted_structures(structures, sources)
    methods = [
        StudyMethod(name, loaded, loaded.lineage, cast(Ask, ask))
        for name, value in named_pairs(model, "--model").items()
        for loaded in [load_model(value, base)]
    ]
    with bar("evaluating") as progress:
        records, masks = run_study(methods, sources, pick_device(device), structures=wanted, progress=progress)
    if not records:
        raise UserError(f"{', '.join(str(path) for path in data)}: no case annotates any of the structures asked for")
    notes = study_notes(methods, sources)
    compare_gated(records, masks, methods, methods[-1], notes)
    draw_overlays(out, records, masks, methods[-1].name, sources)
    save_study(out, records, notes, append=append)  # the scores come last: a folder with scores is complete
    for method in methods:
        scores = [record for record in records if record.method == method.name]
        print(
            f"{method.name}: mean Dice {mean_dice(scores):.3f} over {len({r.case_key for r in scores})} cases ({ask})"
        )


def wanted_structures(names: str | None, sources: list[StudyData]) -> list[str] | None:
    """Canonical names of the structures asked for. UserError for one that no data set holds."""
    given = split_names(names)
    if given is None:
        return None
    extra = {name: fields for s in sources for name, fields in s.dataset.manifest.get("extra_structures", {}).items()}
    registry = default_registry().extended(extra)
    held = {name for source in sources for name in source.dataset.structures}
    wanted = [registry.structure(name).name for name in given]
    for name in wanted:
        if name not in held:
            raise UserError(f"--structures: no data set here holds '{name}'; there are {', '.join(sorted(held))}")
    return wanted


def study_notes(methods: list[StudyMethod], sources: list[StudyData]) -> StudyNotes:
    """What a report says of models and data."""
    return StudyNotes(
        methods={method.name: method.description for method in methods},
        hashes={f"{method.name}, {what}": value for method in methods for what, value in method.loaded.hashes.items()},
        data=data_notes(sources),
    )


def report(
    study: Annotated[Path, typer.Argument(help="Folder written by `adaptmedseg evaluate`.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the report; the study's own by default.")] = None,
    title: Annotated[str, typer.Option(help="The report's title.")] = "Adaptation report",
    base: Annotated[str | None, typer.Option(help="The method compared with; the first by default.")] = None,
    adapted: Annotated[str | None, typer.Option(help="The method judged; the last by default.")] = None,
    run: Annotated[list[str], typer.Option(help="LABEL=FOLDER of a training whose curves to show.")] = [],  # noqa: B006
    seed: Seed = 0,
) -> None:
    """Write report.html, report.md and results.csv from an evaluation.

    \b
    Example:
      adaptmedseg report runs/eval --run adapted=runs/my_mri
    """
    runs = {label: Path(path) for label, path in named_pairs(run, "--run").items()}
    paths = report_study(study, out or study, ReportText(title, base, adapted, runs, seed=seed))
    print(paths.html)
