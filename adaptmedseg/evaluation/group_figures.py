"""Figures of methods against groups such as data sets, sites or numbers of patients: matrix, boxes, learning curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from adaptmedseg.evaluation import style
from adaptmedseg.evaluation.figures import draw_box

LONG_NAME = 18  # letters; longer names take two lines
DARK = 0.55  # above it, numbers on the matrix are white


def matrix_svg(rows: Sequence[str], columns: Sequence[str], values: Mapping[tuple[str, str], float]) -> str:
    """Mean Dice as numbers on a grey scale: `rows` are methods, `columns` groups; what is absent stays empty."""
    with style.settings():
        figure = Figure(figsize=(2.6 + 0.95 * len(columns), 1.5 + 0.3 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        grid = [[values.get((row, column), float("nan")) for column in columns] for row in rows]
        axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in values.items():
            colour = "white" if value > DARK else style.INK
            axes.text(
                columns.index(column),
                rows.index(row),
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=9,
                color=colour,
            )
        axes.set_xticks(range(len(columns)), [_broken(column) for column in columns], fontsize=9)
        axes.set_yticks(range(len(rows)), [_broken(row) for row in rows])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return style.to_svg(figure)


def boxes_svg(rows: Sequence[str], values: Mapping[str, Sequence[float]], oracle: Sequence[str] = ()) -> str:
    """A box and dots a row: one value a case; rows in `oracle` have hollow dots."""
    with style.settings():
        figure = Figure(figsize=(5.4, 0.75 + 0.32 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            colour = style.PALETTE[0] if place == 0 else style.PALETTE[1]
            draw_box(axes, values.get(row, ()), place, colour, "white" if row in oracle else colour)
        axes.set_yticks(range(len(rows)), [_broken(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(-0.015, 1.015)
        axes.set_xlabel("Dice of a case (1 is perfect)")
        axes.spines["left"].set_visible(False)
        style.quiet_grid(axes, "x")
        return style.to_svg(figure)


@dataclass(frozen=True)
class CurvePoint:
    """One point of a learning curve: at which tick, the mean and its 95 % interval."""

    tick: str
    mean: float
    interval: tuple[float, float] | None


def learning_svg(ticks: Sequence[str], curves: Mapping[str, Sequence[CurvePoint]]) -> str:
    """Mean Dice against the number of patients, a line a method; ticks are evenly spaced, in their order."""
    with style.settings():
        figure = Figure(figsize=(5.4, 2.9 + 0.2 * len(curves)), layout="constrained")
        axes = figure.add_subplot()
        for number, (label, points) in enumerate(curves.items()):
            colour = style.colour(number + 1)
            shift = 0.05 * (number - (len(curves) - 1) / 2)
            x = [ticks.index(point.tick) + shift for point in points]
            marker = style.marker(number)
            axes.plot(
                x, [p.mean for p in points], color=colour, marker=marker, markersize=5, linewidth=1.5, label=label
            )
            for at, point in zip(x, points, strict=True):
                if point.interval is not None:
                    axes.plot((at, at), point.interval, color=colour, linewidth=1.1)
        axes.set_xticks(range(len(ticks)), list(ticks))
        axes.set_xlabel("patients of each data set trained on")
        axes.set_ylabel("Dice")
        axes.set_ylim(0, 1)
        style.quiet_grid(axes, "y")
        figure.legend(loc="outside upper left", frameon=False, fontsize=9)
        return style.to_svg(figure)


def _broken(label: str) -> str:
    """A label of two parts, or a long name, in two lines."""
    if " (" in label or len(label) <= LONG_NAME:
        return label.replace(" (", "\n(")
    breaks = [place + 1 for place, letter in enumerate(label) if letter in "_- "] or [len(label)]
    middle = min(breaks, key=lambda place: abs(place - len(label) / 2))
    return f"{label[:middle]}\n{label[middle:]}"
