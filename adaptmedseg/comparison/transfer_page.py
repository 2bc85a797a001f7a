"""The report of a transfer study: its own tables and figures above those of every report."""

import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np

from adaptmedseg.comparison.finished import Finished
from adaptmedseg.comparison.judge import Judged
from adaptmedseg.comparison.transfer import NEW, OLD, Transfer, side_of
from adaptmedseg.comparison.transfer_tables import curve_tables, judged_csv, judged_table, price_table
from adaptmedseg.data.files import write_atomic
from adaptmedseg.evaluation import wording
from adaptmedseg.evaluation.group_figures import boxes_svg, learning_svg, matrix_svg
from adaptmedseg.evaluation.page import PageFigure, ReportTable
from adaptmedseg.evaluation.report import ReportPaths
from adaptmedseg.evaluation.study import OVERLAYS, RESULTS, save_study
from adaptmedseg.evaluation.study_report import ReportText, package_versions, report_study
from adaptmedseg.evaluation.tables import ALL_STRUCTURES, paired_differences

TABLE = "transfer.csv"
CURVES_SHOWN = 5  # figures of learning curves: all new data and the first sets


def write_transfer(out: Path, study: Transfer, found: Finished, title: str, seed: int = 0) -> ReportPaths:
    """Write OUT/{report.html, report.md, results.csv, transfer.csv} with all that a report has, in the place of an
    earlier one."""
    (out / RESULTS).unlink(missing_ok=True)
    shutil.rmtree(out / OVERLAYS, ignore_errors=True)
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
        caveats=[*found.problems, *_caveats(study)],
        tables=tables(study),
        figures=figures(study, found),
        configs={study.best: found.configs[study.best]} if study.best in found.configs else {},
        seed=seed,
    )
    return report_study(out, out, text)


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


def _caveats(study: Transfer) -> list[str]:
    seeds = {item.seeds for item in study.sides if item.seeds}
    told = []
    if seeds and max(seeds) < 3:
        told.append(
            f"With {wording.count(max(seeds), 'seed')} the deviation over seeds is a rough guess; the tests compare "
            "the models trained here, not the methods in general."
        )
    patients = max((item.row.patients for item in study.sides), default=0)
    if patients < 10:
        told.append(f"The tests rest on {wording.count(patients, 'patient')} at most.")
    return told


def sentences(study: Transfer, found: Finished) -> list[str]:
    """The head of the page: who is best on new data, against training from scratch, and who forgets."""
    told = []
    for item in study.sides:
        row = item.row
        if row.method == study.best and row.modality.endswith(NEW) and row.mean is not None:
            told.append(
                f"On {row.modality.removesuffix(f', {NEW}')} data that are new to the base, {study.best} has the "
                f"highest mean Dice of {len(_names(study, row.modality))} strategies: "
                f"{wording.score(row.mean)} ({wording.interval(row.interval)}; {wording.count(row.n, 'case')} of "
                f"{wording.count(row.patients, 'patient')})."
            )
    told += [_against_scratch(study, name) for name in found.scratch if study.best != study.base]
    old = [item for item in study.sides if item.row.modality.endswith(OLD) and item.change is not None]
    kept = [item.row.method for item in old if item.change is not None and not item.change.better + item.change.worse]
    if kept:
        told.append(f"The same score as {study.base} on every old case: {wording.listing(kept)}.")
    worst = min(old, key=lambda item: item.change.difference if item.change else 0.0, default=None)
    if worst is not None and worst.change is not None and worst.change.difference < 0:
        told.append(
            f"Most is forgotten by {worst.row.method}: {wording.change(worst.change.difference)} on "
            f"{worst.row.modality} data ({wording.change_interval(worst.change.interval)})."
        )
    return [sentence for sentence in told if sentence]


def _names(study: Transfer, side: str) -> set[str]:
    return {item.row.method for item in study.sides if item.row.modality == side}


def _against_scratch(study: Transfer, scratch: str) -> str:
    pairs = paired_differences(study.scores.records, scratch, study.best, group=lambda _record: "")
    over_all = [pair for pair in pairs if pair.structure == ALL_STRUCTURES]
    if not over_all:
        return ""
    pair = over_all[0]
    return (
        f"Against {scratch}, trained from scratch, {study.best} is {wording.change(pair.difference)} apart on "
        f"{wording.count(pair.n, 'case')} ({wording.change_interval(pair.interval)}; {pair.better} better, "
        f"{pair.worse} worse; Wilcoxon's p {wording.p_value(pair.p)}, one test)."
    )


def tables(study: Transfer) -> list[ReportTable]:
    """All tables: sides first, then price, learning curves, sites, data sets, structures."""
    found = []
    for side in dict.fromkeys(item.row.modality for item in study.sides):
        rows = [item for item in study.sides if item.row.modality == side]
        found.append(judged_table(side, rows, study.base, study.reference))
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
    for number, side in enumerate(dict.fromkeys(item.row.modality for item in study.sides), start=1):
        rows = [item.row for item in study.sides if item.row.modality == side]
        values = {row.method: _case_values(study, found, row.method, side) for row in rows}
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
