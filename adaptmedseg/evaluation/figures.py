"""Box plots over every case's Dice: by structure with methods side by side, and of groups of any kind."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adaptmedseg.evaluation import style
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.tables import ALL_STRUCTURES, Row
from adaptmedseg.evaluation.wording import origin
from adaptmedseg.inference.prompt_origin import is_oracle

_WIDTH, _ROW, _HEAD = 5.4, 0.27, 0.75
FEWEST_IN_A_BOX = 4


def series_styles(records: Sequence[Record], method_order: Sequence[str]) -> dict[tuple[str, str], tuple[str, str]]:
    """Colour and marker of every (method, prompt origin); a method keeps its colour, an origin gets its own marker."""
    methods = list(dict.fromkeys([*method_order, *(record.method for record in records)]))
    series = dict.fromkeys((record.method, record.prompt_origin) for record in records)
    ordered = sorted(series, key=lambda key: (methods.index(key[0]), is_oracle(key[1]), key[1]))
    return {key: (style.colour(methods.index(key[0])), style.marker(place)) for place, key in enumerate(ordered)}


def dice_strip_svg(
    records: Sequence[Record],
    rows: Sequence[Row],
    modality: str,
    styles: Mapping[tuple[str, str], tuple[str, str]],
    labels: Mapping[str, str],
) -> str:
    """SVG for one modality: a dot a scored case, a box of quartiles, a bar for the 95 % interval, a tick for the mean.

    `rows` come from `aggregate`, `styles` from `series_styles`, `labels` say how to call the methods. Oracle
    prompts have hollow dots.
    """
    wanted = [row for row in rows if row.modality == modality and row.structure != ALL_STRUCTURES]
    structures = list(dict.fromkeys(row.structure for row in wanted))
    series = [key for key in styles if any((row.method, row.prompt_origin) == key for row in wanted)]
    slots = len(structures) * (len(series) + 1)
    with style.settings():
        height = _HEAD + _ROW * slots + 0.24 * len(series)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        for row in wanted:
            key = (row.method, row.prompt_origin)
            place = structures.index(row.structure) * (len(series) + 1) + series.index(key)
            _draw_row(axes, row, _dice_values(records, row), place, styles[key])
        _finish(axes, structures, len(series))
        handles = [_handle(key, styles[key], labels) for key in series]
        figure.legend(handles=handles, loc="outside upper left", frameon=False, fontsize=9, borderaxespad=0)
        return style.to_svg(figure)


def _dice_values(records: Sequence[Record], row: Row) -> list[float]:
    key = (row.modality, row.structure, row.method, row.prompt_origin)
    return [
        r.dice for r in records if (r.modality, r.structure, r.method, r.prompt_origin) == key and r.dice is not None
    ]


def _draw_row(axes: Axes, row: Row, values: Sequence[float], place: int, look: tuple[str, str]) -> None:
    colour, marker = look
    draw_box(axes, values, place, colour, "white" if row.is_oracle else colour, marker)
    if row.interval is not None:
        axes.plot(row.interval, (place, place), color=colour, linewidth=2.2, solid_capstyle="butt")
    if row.mean is not None:
        axes.plot((row.mean, row.mean), (place - 0.36, place + 0.36), color=style.INK, linewidth=1.8)
    else:
        axes.text(0.01, place, "nothing to score", va="center", color=style.MUTED, fontsize=8)


def draw_box(
    axes: Axes, values: Sequence[float], place: int, colour: str, face: str, marker: str = style.MARKERS[0]
) -> None:
    """A dot a value; from four values on their quartiles as a box with the median across, and whiskers to the last
    value within 1.5 box lengths (Tukey 1977)."""
    jitter = np.random.default_rng(place).uniform(-0.22, 0.22, len(values))
    axes.scatter(
        values, place + jitter, s=15, marker=marker, facecolor=face, edgecolor=colour, alpha=0.55, linewidth=0.8
    )
    if len(values) >= FEWEST_IN_A_BOX:
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        reach = 1.5 * (high - low)
        ends = min(v for v in values if v >= low - reach), max(v for v in values if v <= high + reach)
        axes.barh(place, high - low, 0.72, low, facecolor="none", edgecolor=colour, linewidth=0.9)
        axes.plot((middle, middle), (place - 0.36, place + 0.36), color=colour, linewidth=0.9)
        axes.plot((ends[0], low), (place, place), color=colour, linewidth=0.9)
        axes.plot((high, ends[1]), (place, place), color=colour, linewidth=0.9)


def _finish(axes: Axes, structures: Sequence[str], series: int) -> None:
    centres = [index * (series + 1) + (series - 1) / 2 for index in range(len(structures))]
    axes.set_yticks(centres, structures)
    axes.set_ylim(len(structures) * (series + 1) - 1.4, -0.6)
    axes.set_xlim(-0.015, 1.015)
    axes.set_xlabel("Dice (1 is perfect)")
    axes.spines["left"].set_visible(False)
    style.quiet_grid(axes, "x")


def _handle(key: tuple[str, str], look: tuple[str, str], labels: Mapping[str, str]) -> Line2D:
    method, prompt = key
    face = "white" if is_oracle(prompt) else look[0]
    label = (
        f"{labels.get(method, method)} (prompt: {origin(prompt)})" if prompt != "none" else labels.get(method, method)
    )
    return Line2D([], [], color=look[0], marker=look[1], markerfacecolor=face, markersize=5, linewidth=2.2, label=label)
