"""Studies of prompts: Dice against the number of clicks, against how far a box is off, and by kind of prompt.

All prompts beside names are made from the truth ('oracle'), and every row and label says so.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from matplotlib.figure import Figure

from adaptmedseg.evaluation import style, wording
from adaptmedseg.evaluation.measure_tables import measure_tables
from adaptmedseg.evaluation.page import Page, PageFigure, ReportTable
from adaptmedseg.evaluation.questions import ByName, Clicks, FromTruth, Question
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.tables import ALL_STRUCTURES, Row, aggregate, unequal_cases
from adaptmedseg.inference.prompt_origin import is_oracle, question_of

Study = Literal["clicks", "boxes", "prompts"]
STUDIES: tuple[Study, ...] = get_args(Study)
BOX_SHIFTS = (0, 1, 5, 10, 20, 50)  # voxels, as in the SegVol adaptation study
POINTS = 3
TITLES: Mapping[Study, str] = {
    "clicks": "Dice by number of clicks",
    "boxes": "Dice by displacement of the box",
    "prompts": "Dice by kind of prompt",
}
AXES: Mapping[Study, str] = {
    "clicks": "clicks, each on the largest error left (oracle)",
    "boxes": "each face of the oracle box moved by up to ... voxels",
    "prompts": "prompt",
}


def questions_of(study: Study, clicks: int = 10, seed: int = 0) -> list[Question]:
    """What a study asks: the name with 0 to `clicks` clicks; the name with boxes, ever further off; or names, boxes
    and points, alone and in all combinations."""
    if study == "clicks":
        return [Clicks(clicks)]
    if study == "boxes":
        return [ByName(), *(FromTruth(box=True, shift=shift, seed=seed) for shift in BOX_SHIFTS)]
    kinds = [(text, box, points) for text in (True, False) for box in (False, True) for points in (0, POINTS)]
    asked: list[Question] = [ByName()]
    asked += [FromTruth(text, box, 0, points, seed) for text, box, points in kinds if box or points]
    return asked


def study_page(
    study: Study, records: Sequence[Record], labels: Mapping[str, str], order: Sequence[str] = (), seed: int = 0
) -> Page:
    """The page of a study: a curve for each modality, a table of Dice, and the further measures."""
    rows = aggregate(records, order, seed)
    place = {question: i for i, question in enumerate(dict.fromkeys(question_of(r.prompt_origin) for r in records))}
    rows.sort(key=lambda row: (row.modality, row.structure, row.method, place[question_of(row.prompt_origin)]))
    single = {m: len({r.structure for r in records if r.modality == m}) == 1 for m in {r.modality for r in records}}
    rows = [row for row in rows if row.structure != ALL_STRUCTURES or not single[row.modality]]
    figures = []
    for number, modality in enumerate(dict.fromkeys(record.modality for record in records)):
        shown = [row for row in rows if row.modality == modality and row.mean is not None]
        shown = [row for row in shown if single[modality] or row.structure == ALL_STRUCTURES]
        svg = _curves(study, shown, place, labels)
        figures.append(PageFigure(modality, f"{study}-{number}", svg, f"{TITLES[study]}, {modality}"))
    return Page(
        TITLES[study],
        [_sentence(row, labels) for row in _ends(rows)],
        [
            "Prompts “made from the truth” use the answer to place the prompt: such scores are a ceiling, not what a "
            "user gets. Structures without a voxel in the image cannot be prompted so and are left out there.",
            *unequal_cases(records),
        ],
        figures,
        [_table(rows, labels), *measure_tables(records, labels, order, seed)],
    )


def _ends(rows: Sequence[Row]) -> list[Row]:
    """First and last way of asking of each method and modality, over all its structures."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.modality, row.method), []).append(row)
    found = []
    for group in groups.values():
        over_all = [row for row in group if row.structure == ALL_STRUCTURES] or group
        found += [over_all[0], over_all[-1]]
    return list(dict.fromkeys(found))


def _sentence(row: Row, labels: Mapping[str, str]) -> str:
    where = f"{labels.get(row.method, row.method)} on {row.modality}, {row.structure}"
    interval = "" if row.interval is None else f" ({wording.interval(row.interval)})"
    return (
        f"{where}, prompt: {wording.origin(row.prompt_origin)}: mean Dice {wording.score(row.mean)}{interval} over "
        f"{wording.count(row.n, 'case')}."
    )


def _table(rows: Sequence[Row], labels: Mapping[str, str]) -> ReportTable:
    cells = [
        [
            row.modality, row.structure, labels.get(row.method, row.method), wording.origin(row.prompt_origin),
            wording.score(row.mean), wording.interval(row.interval), wording.score(row.sd), str(row.n),
            str(row.unscored),
        ]
        for row in rows
    ]  # fmt: skip
    header = ("Modality", "Structure", "Method", "Prompt", "Mean Dice", "95 % interval", "SD", "Cases", "Not scored")
    return ReportTable("Dice", header, cells, "Intervals are bootstrapped over patients.", texts=4)


def _curves(study: Study, rows: Sequence[Row], place: Mapping[str, int], labels: Mapping[str, str]) -> str:
    """Mean Dice with its interval for each way of asking; hollow where the prompt is made from the truth."""
    methods = list(dict.fromkeys(row.method for row in rows))
    ticks = sorted({place[question_of(row.prompt_origin)]: question_of(row.prompt_origin) for row in rows}.items())
    with style.settings():
        figure = Figure(figsize=(5.4, 3.4 + (0.9 if study == "prompts" else 0)), layout="constrained")
        axes = figure.add_subplot()
        for number, method in enumerate(methods):
            own = [row for row in rows if row.method == method and row.mean is not None]
            x = [place[question_of(row.prompt_origin)] + 0.06 * (number - (len(methods) - 1) / 2) for row in own]
            colour = style.colour(number + 1)
            means = [row.mean or 0.0 for row in own]
            line = "none" if study == "prompts" else "-"
            axes.plot(x, means, color=colour, linestyle=line, linewidth=1.4, label=labels.get(method, method))
            for row, at, mean in zip(own, x, means, strict=True):
                low, high = row.interval or (mean, mean)
                axes.plot((at, at), (low, high), color=colour, linewidth=1.2)
                face = "white" if is_oracle(row.prompt_origin) else colour
                axes.plot(at, mean, style.marker(number), color=colour, markerfacecolor=face)
        axes.set_xticks([at for at, _ in ticks], [_tick(study, question) for _, question in ticks])
        axes.tick_params(axis="x", labelrotation=30 if study == "prompts" else 0)
        axes.set_xlabel(AXES[study])
        axes.set_ylabel("Dice")
        axes.set_ylim(0, 1)
        style.quiet_grid(axes, "y")
        figure.legend(loc="outside upper left", frameon=False, fontsize=9)
        return style.to_svg(figure)


def _tick(study: Study, question: str) -> str:
    if study == "prompts":
        return question
    number = "".join(filter(str.isdigit, question))
    if not is_oracle(question):
        return "0" if study == "clicks" else "name\nalone"
    return number or "0"
