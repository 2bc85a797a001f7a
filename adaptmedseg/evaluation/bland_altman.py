"""Agreement of volumes: predicted minus true against their mean (Bland & Altman, Lancet 1986)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptmedseg.evaluation import style, wording
from adaptmedseg.evaluation.page import PageFigure, ReportTable
from adaptmedseg.evaluation.records import Record

NORMAL_95 = 1.96
FEWEST = 3
COLUMNS = 2
LONG = 40  # rows; longer tables are folded
HEADER = ("Modality", "Structure", "Method", "Prompt", "Bias, ml", "SD, ml", "Limits of agreement, ml", "Cases")
NOTE = (
    "Bias: mean of predicted minus true volume. About 95 % of the errors lie within the limits of agreement (bias ± "
    "1.96 SD) where they are normally distributed; none are given for fewer than three cases. Structures the truth "
    "lacks are left out."
)


@dataclass(frozen=True)
class Agreement:
    """Volume errors (ml) of one method with one prompt on one structure; `sd` is None for fewer than three cases."""

    modality: str
    structure: str
    method: str
    prompt_origin: str
    means: list[float]
    errors: list[float]

    @property
    def bias(self) -> float:
        return float(np.mean(self.errors))

    @property
    def sd(self) -> float | None:
        return float(np.std(self.errors, ddof=1)) if len(self.errors) >= FEWEST else None

    @property
    def limits(self) -> tuple[float, float] | None:
        """Bias ± 1.96 standard deviations."""
        return None if self.sd is None else (self.bias - NORMAL_95 * self.sd, self.bias + NORMAL_95 * self.sd)


def volume_agreement(records: Sequence[Record], methods: Sequence[str]) -> list[Agreement]:
    """Agreement by modality, structure, method (in the order of `methods`, no others) and prompt origin.

    Scores with an oracle prompt are left out where there are others.
    """
    groups: dict[tuple[str, str, str, str], list[tuple[float, float]]] = {}
    own = [record for record in records if record.method in methods]
    own = [record for record in own if not record.is_oracle] or own
    for record in sorted(own, key=lambda record: methods.index(record.method)):
        if record.volume_ml is not None and record.truth_volume_ml:
            key = (record.modality, record.structure, record.method, record.prompt_origin)
            groups.setdefault(key, []).append((record.volume_ml, record.truth_volume_ml))
    modalities = list(dict.fromkeys(record.modality for record in records))
    structures = list(dict.fromkeys(record.structure for record in records))
    ordered = sorted(groups, key=lambda key: (modalities.index(key[0]), structures.index(key[1])))
    return [Agreement(*key, [(p + t) / 2 for p, t in groups[key]], [p - t for p, t in groups[key]]) for key in ordered]


def agreement_table(found: Sequence[Agreement], labels: Mapping[str, str]) -> ReportTable:
    """Bias and limits of agreement, one row a modality, structure, method and prompt."""
    rows = []
    for row in found:
        limits = row.limits
        shown = wording.MISSING if limits is None else f"{_signed(limits[0])} to {_signed(limits[1])}"
        sd = wording.MISSING if row.sd is None else f"{row.sd:.1f}"
        name, origin = labels.get(row.method, row.method), wording.origin(row.prompt_origin)
        rows.append([row.modality, row.structure, name, origin, _signed(row.bias), sd, shown, str(len(row.errors))])
    return ReportTable("Agreement of volumes", HEADER, rows, NOTE, texts=4, folded=len(rows) > LONG)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", wording.MINUS)


def agreement_figures(found: Sequence[Agreement], labels: Mapping[str, str]) -> list[PageFigure]:
    """A figure a modality, a panel a structure; methods differ in colour and marker."""
    figures = []
    methods = list(dict.fromkeys((row.method, row.prompt_origin) for row in found))
    for number, modality in enumerate(dict.fromkeys(row.modality for row in found), start=1):
        rows = [row for row in found if row.modality == modality]
        names = [labels.get(method, method) for method in dict.fromkeys(row.method for row in rows)]
        alt = f"Bland–Altman plots of volumes, {modality}, {wording.listing(names)}; numbers are in the table."
        svg = _panels(rows, methods, labels)
        figures.append(PageFigure(f"{modality}: volumes", f"volumes-{number}", svg, alt))
    return figures


def _panels(rows: Sequence[Agreement], methods: Sequence[tuple[str, str]], labels: Mapping[str, str]) -> str:
    structures = list(dict.fromkeys(row.structure for row in rows))
    columns = min(COLUMNS, len(structures))
    lines = -(-len(structures) // columns)
    with style.settings():
        size = (1.0 + 2.2 * max(columns, 2), 0.5 + 2.0 * lines + 0.2 * len(methods))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(structures) :]:
            axes.set_axis_off()
        for axes, structure in zip(grid.flat, structures, strict=False):
            for row in rows:
                if row.structure == structure:
                    _draw(axes, row, methods.index((row.method, row.prompt_origin)), labels)
            axes.axhline(0, color=style.INK, linewidth=0.7)
            axes.set_title(structure, fontsize=9)
            style.quiet_grid(axes, "y")
        figure.supxlabel("mean of predicted and true volume, ml", fontsize=9)
        figure.supylabel("predicted − true, ml", fontsize=9)
        handles = {
            label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", frameon=False, fontsize=9)
        return style.to_svg(figure)


def _draw(axes: Axes, row: Agreement, number: int, labels: Mapping[str, str]) -> None:
    colour = style.colour(number)
    label = f"{labels.get(row.method, row.method)} (prompt: {wording.origin(row.prompt_origin)})"
    marker = style.marker(number)
    axes.plot(row.means, row.errors, marker, color=colour, markersize=4, alpha=0.7, linestyle="none", label=label)
    axes.axhline(row.bias, color=colour, linewidth=1.3)
    for limit in row.limits or ():
        axes.axhline(limit, color=colour, linewidth=1.0, linestyle="dashed")
