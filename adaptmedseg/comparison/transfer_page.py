"""The report of a transfer study: its own tables and figures above those of every report."""

import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np

from adaptmedseg.comparison.finished import Finished
from adaptmedseg.comparison.judge import Judged
from adaptmedseg.comparison.sides import side_of
from adaptmedseg.comparison.transfer import Transfer
from adaptmedseg.comparison.transfer_sentences import caveats, sentences
from adaptmedseg.comparison.transfer_tables import curve_tables, judged_csv, judged_table, price_table
from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.staging import staged
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation import wording
from adaptmedseg.evaluation.group_figures import boxes_svg, learning_svg, matrix_svg
from adaptmedseg.evaluation.page import PageFigure, ReportTable
from adaptmedseg.evaluation.report import FILES_FOLDER, ReportPaths
from adaptmedseg.evaluation.study import NOTES, OVERLAYS, RESULTS, save_study
from adaptmedseg.evaluation.study_report import ReportText, package_versions, report_study

TABLE = "transfer.csv"
WRITTEN = {TABLE, RESULTS, NOTES, OVERLAYS, "report.html", "report.md", "results.csv", FILES_FOLDER}
CURVES_SHOWN = 5  # figures of learning curves: all new data and the first sets


def check_out(out: Path) -> None:
    """UserError unless a study may be written to `out`: a new or empty folder, or an earlier study and nothing else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a new folder for --out")
    held = sorted(path.name for path in out.iterdir()) if out.exists() else []
    foreign = [name for name in held if TABLE not in held or name not in WRITTEN]
    if foreign:
        raise UserError(
            f"{out}: holds {foreign[0]}, which is no part of a transfer study; choose a new folder for --out"
        )


def write_transfer(out: Path, study: Transfer, found: Finished, title: str) -> ReportPaths:
    """Write OUT/{report.html, report.md, results.csv, transfer.csv} with all that a report has, in the place of an
    earlier one, which stays as it was until all is written. UserError as in `check_out`."""
    check_out(out)
    with staged(out.resolve(), TABLE, check_out, overwrite=True) as partial:
        _write(partial, study, found, title)
    return ReportPaths(out / "report.html", out / "report.md", out / "results.csv", out / FILES_FOLDER)


def _write(out: Path, study: Transfer, found: Finished, title: str) -> None:
    _take_overlays(out, study)
    notes = found.notes
    notes.methods = {name: _described(name, found) for name in found.strategies}
    notes.versions = notes.versions or package_versions()
    seeds = sorted({run.seed for run in study.scores.runs if run.seed is not None})
    notes.seeds = {"trainings": ", ".join(map(str, seeds))} if seeds else {}
    save_study(out, study.scores.records, notes)
    write_atomic(out / TABLE, judged_csv(study.parts))
    text = ReportText(
        title,
        base=study.base,
        adapted=study.best,
        sentences=sentences(study, found),
        caveats=caveats(study, found),
        tables=tables(study),
        figures=figures(study, found),
        configs={study.best: found.configs[study.best]} if study.best in found.configs else {},
        seed=study.seed,
    )
    report_study(out, out, text)


def _described(name: str, found: Finished) -> str:
    runs = [run for run in found.runs if run.strategy == name]
    given = found.notes.methods.get(name, "")
    trained = wording.count(len({(run.seed, run.fold) for run in runs if run.cost is not None}), "training")
    made = f"mean of {trained}" if any(run.cost is not None for run in runs) else "nothing was trained"
    scratch = "; trained from scratch" if name in found.scratch else ""
    return given or f"{made}{scratch}"


def _take_overlays(out: Path, study: Transfer) -> None:
    """The pictures of the best strategy's first training that has some; their scores are that training's."""
    for run in study.scores.runs:
        if run.strategy == study.best and run.folder is not None and (run.folder / OVERLAYS).is_dir():
            shutil.copytree(run.folder / OVERLAYS, out / OVERLAYS)
            return


def tables(study: Transfer) -> list[ReportTable]:
    """All tables: sides first, then price, learning curves, sites, data sets, structures."""
    found = [judged_table(side, rows, study.base, study.reference) for side, rows in study.by_side.items()]
    found.append(price_table(study.scores.runs))
    found += curve_tables(study.ticks, study.curves)
    if study.sites:
        title = "Leave one site out" if study.left_out else "By site (which may be among the sites trained on)"
        found.append(judged_table(title, study.sites, study.base, study.reference, "Site"))
    found.append(judged_table("By data set", study.datasets, study.base, study.reference, "Data"))
    found.append(judged_table("By structure", study.structures, study.base, study.reference, "Data"))
    return [table for table in found if table.rows]


def figures(study: Transfer, found: Finished) -> list[PageFigure]:
    """Transfer matrix, boxes of new and old data, a matrix of sites, learning curves."""
    alt = "Mean Dice of every strategy on every data set; numbers are in the table by data set."
    drawn = [PageFigure("Transfer matrix: mean Dice", "transfer-matrix", _matrix(study.datasets), alt)]
    for number, (side, rows) in enumerate(study.by_side.items(), start=1):
        methods = dict.fromkeys(item.row.method for item in rows)
        values = {method: _case_values(study, found, method, side) for method in methods}
        alt = f"Dice of every case by strategy, {side}"
        drawn.append(PageFigure(f"{side}: every case", f"boxes-{number}", boxes_svg(list(values), values), alt))
    if study.sites:
        drawn.append(
            PageFigure("Sites: mean Dice", "site-matrix", _matrix(study.sites), "Mean Dice by strategy and site")
        )
    for number, (group, curves) in enumerate(list(study.curves.items())[:CURVES_SHOWN], start=1):
        svg = learning_svg(study.ticks, curves)
        alt = f"Mean Dice by number of patients trained on, {group}"
        drawn.append(PageFigure(f"Learning curves: {group}", f"learning-{number}", svg, alt))
    return drawn


def _matrix(rows: list[Judged]) -> str:
    methods = list(dict.fromkeys(item.row.method for item in rows))
    groups = list(dict.fromkeys(item.row.modality for item in rows))
    values: dict[tuple[str, str], float] = {}
    for item in rows:
        if item.row.mean is not None and not item.row.is_oracle:
            values.setdefault((item.row.method, item.row.modality), item.row.mean)
    return matrix_svg(methods, groups, values)


def _case_values(study: Transfer, found: Finished, method: str, side: str) -> list[float]:
    """Mean over structures of every case of one side, prompts from the truth left out."""
    cases: dict[object, list[float]] = defaultdict(list)
    for record in study.scores.records:
        own = record.method == method and not record.is_oracle and side_of(record, found) == side
        if own and record.dice is not None:
            cases[record.case_key].append(record.dice)
    return [float(np.mean(values)) for values in cases.values()]
