"""`adaptmedseg evaluate` and `adaptmedseg report`: scores on unseen cases, and what to make of them."""

from pathlib import Path
from typing import Annotated, get_args

import torch
import typer

from adaptmedseg.cli.common import Device, Seed, Structures, bar, named_pairs, split_names
from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.registry import default_registry
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.evaluate import mean_dice
from adaptmedseg.evaluation.joined import join_studies
from adaptmedseg.evaluation.metrics import TOLERANCE_MM, MeasureSettings
from adaptmedseg.evaluation.page import write_page
from adaptmedseg.evaluation.prompt_study import STUDIES, questions_of, study_page
from adaptmedseg.evaluation.questions import ByName, FromTruth, Question
from adaptmedseg.evaluation.records import Record, results_csv
from adaptmedseg.evaluation.study import (
    RESULTS,
    StudyData,
    StudyMethod,
    StudyNotes,
    ask_all,
    asked_cases,
    compare_gated,
    data_notes,
    draw_overlays,
    run_study,
    save_study,
    study_data,
)
from adaptmedseg.evaluation.study_report import ReportText, package_versions, report_study
from adaptmedseg.evaluation.surfaces import Elements
from adaptmedseg.inference.loading import load_model
from adaptmedseg.models.unet import ReferenceUNet

ASKS: dict[str, Question] = {"text": ByName(), "oracle box": FromTruth(box=True)}
Zoom = Annotated[
    bool | None,
    typer.Option("--zoom/--no-zoom", help="Look again at full resolution; by default as the model was made for."),
]


def evaluate(
    model: Annotated[list[str], typer.Option(help="NAME=MODEL: known name, file or run folder; repeat it to compare.")],
    data: Annotated[list[Path], typer.Option(help="Prepared data set(s).")],
    out: Annotated[Path, typer.Option(help="Folder for scores and pictures.")],
    split: Annotated[str, typer.Option(help="Which cases: test or val.")] = "test",
    fold: Annotated[int | None, typer.Option(help="The test cases of this fold instead of a split.", min=0)] = None,
    structures: Structures = None,
    ask: Annotated[str, typer.Option(help="'text', or 'oracle box': the truth's own box, an upper bound.")] = "text",
    study: Annotated[
        str | None,
        typer.Option(help="Instead of --ask: clicks, boxes (ever further off) or prompts (kinds), all oracle."),
    ] = None,
    clicks: Annotated[int, typer.Option(help="Clicks of --study clicks.", min=1)] = 10,
    tolerance: Annotated[float, typer.Option(help="Of normalised surface Dice, mm.", min=0)] = TOLERANCE_MM,
    surfaces: Annotated[
        str, typer.Option(help="Made of voxels (as MONAI) or surfels (as DeepMind's surface-distance).")
    ] = "voxels",
    zoom: Zoom = None,
    base: Annotated[str | None, typer.Option(help="Base of an adapter, where its file has moved.")] = None,
    append: Annotated[bool, typer.Option(help="Add to the scores in --out (other folds, other models).")] = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Score models on cases that none of them was trained on; the last one's masks are drawn.

    Beside Dice: Jaccard, HD95, ASSD, ASD, NSD, volume errors and lesions (docs/evaluation.md). A study asks in many
    ways and writes a page of curves and tables instead of pictures.

    \b
    Examples:
      adaptmedseg evaluate --model base=small --model adapted=runs/my_mri --data prepared/my_mri --out runs/eval
      adaptmedseg evaluate --model adapted=runs/fold1 --data prepared/promise12 --fold 1 --out runs/eval --append
      adaptmedseg evaluate --model adapted=runs/my_mri --data prepared/my_mri --study clicks --out runs/clicks
    """
    if (out / RESULTS).exists() and not append:
        raise UserError(f"{out}: holds another evaluation; choose a new --out, or add to it with --append")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a folder for --out")
    questions = chosen_questions(ask, study, clicks, seed)
    measures = MeasureSettings(tolerance, chosen_elements(surfaces))
    sources = [study_data(path, split, fold) for path in data]
    wanted = wanted_structures(structures, sources)
    methods = [
        StudyMethod(name, loaded, loaded.lineage, questions, zoom)
        for name, value in named_pairs(model, "--model").items()
        for loaded in [load_model(value, base)]
    ]
    chosen = pick_device(device)
    if study is not None:
        records = run_prompt_study(methods, sources, chosen, wanted, measures)
        check_any(records, data)
        write_prompt_study(out, study, records, [method.name for method in methods], seed)
        save_study(out, records, study_notes(methods, sources, seed, wanted), append=append)  # last, as below
        return
    with bar("evaluating") as progress:
        records, masks = run_study(methods, sources, chosen, structures=wanted, measures=measures, progress=progress)
    check_any(records, data)
    notes = study_notes(methods, sources, seed, wanted)
    compare_gated(records, masks, methods, methods[-1], notes)
    draw_overlays(out, records, masks, methods[-1].name, sources)
    save_study(out, records, notes, append=append)  # the scores come last: a folder with scores is complete
    for method in methods:
        scores = [record for record in records if record.method == method.name]
        print(
            f"{method.name}: mean Dice {mean_dice(scores):.3f} over {len({r.case_key for r in scores})} cases ({ask})"
        )


def chosen_questions(ask: str, study: str | None, clicks: int, seed: int) -> list[Question]:
    """The ways of asking that the options name. UserError for unknown ones."""
    if ask not in ASKS:
        raise UserError(f"--ask {ask}: choose text or 'oracle box'")
    if study is None:
        return [ASKS[ask]]
    for known in STUDIES:
        if study == known:
            return questions_of(known, clicks, seed)
    raise UserError(f"--study {study}: choose {', '.join(STUDIES)}")


def chosen_elements(surfaces: str) -> Elements:
    """What surfaces are made of. UserError for something else."""
    for known in get_args(Elements):
        if surfaces == known:
            return known
    raise UserError(f"--surfaces {surfaces}: choose {' or '.join(get_args(Elements))}")


def check_any(records: list[Record], data: list[Path]) -> None:
    """UserError where nothing was scored."""
    if not records:
        raise UserError(f"{', '.join(str(path) for path in data)}: no case annotates any of the structures asked for")


def run_prompt_study(
    methods: list[StudyMethod],
    sources: list[StudyData],
    device: torch.device,
    structures: list[str] | None,
    measures: MeasureSettings,
) -> list[Record]:
    """Scores with every question. UserError for a model that takes no prompts."""
    for method in methods:
        if isinstance(method.loaded.model, ReferenceUNet):
            raise UserError(f"--model {method.name}: a U-Net takes no prompts; leave it out of --study")
    with bar("asking") as progress:
        return ask_all(methods, sources, device, structures=structures, measures=measures, progress=progress)


def write_prompt_study(out: Path, study: str, records: list[Record], order: list[str], seed: int) -> None:
    """Write the study's page and its scores as CSV, and print what stands at the page's head."""
    kind = next(known for known in STUDIES if known == study)
    page = study_page(kind, records, {name: name for name in order}, order, seed)
    write_atomic(out / f"{study}.csv", results_csv(records))
    for sentence in page.sentences:
        print(sentence)
    print(write_page(out, study, page))


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


def study_notes(
    methods: list[StudyMethod], sources: list[StudyData], seed: int, structures: list[str] | None = None
) -> StudyNotes:
    """What a report says of models and data; `seed` is that of the questions, `structures` were asked for."""
    return StudyNotes(
        methods={method.name: method.description for method in methods},
        hashes={f"{method.name}, {what}": value for method in methods for what, value in method.loaded.hashes.items()},
        data=data_notes(sources),
        licences={method.name: method.loaded.licence for method in methods},
        asked=asked_cases(sources, structures),
        seeds={"questions": str(seed)},
        versions=package_versions(),
    )


def report(
    study: Annotated[list[Path], typer.Argument(help="Folder written by `adaptmedseg evaluate`; several to compare.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report; the study's own by default, a new one for several.")
    ] = None,
    title: Annotated[str, typer.Option(help="The report's title.")] = "Adaptation report",
    base: Annotated[str | None, typer.Option(help="The method compared with; the first by default.")] = None,
    adapted: Annotated[str | None, typer.Option(help="The method judged; the last by default.")] = None,
    run: Annotated[list[str], typer.Option(help="LABEL=FOLDER of a training whose curves to show.")] = [],  # noqa: B006
    seed: Seed = 0,
) -> None:
    """Write report.html, report.md and results.csv from one evaluation, or from several side by side.

    \b
    Examples:
      adaptmedseg report runs/eval --run adapted=runs/my_mri
      adaptmedseg report runs/eval runs/other --out runs/both
    """
    runs = {label: Path(path) for label, path in named_pairs(run, "--run").items()}
    folder = study[0]
    if len(study) > 1:
        if out is None:
            raise UserError("several evaluations make a report of their own: name a new folder for it with --out")
        join_studies(study, out)
        folder = out
    paths = report_study(folder, out or folder, ReportText(title, base, adapted, runs, seed=seed))
    print(paths.html)
