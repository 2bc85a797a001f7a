"""Figures of support-size curves."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from adaptmedseg.evaluation import style, wording
from adaptmedseg.evaluation.slices.points import Common, Point


def support_curve_svg(points: Sequence[Point], dataset: str) -> str:
    """SVG of Dice over the number of supports of one set, a line a method, with the deviation over draws."""
    chosen = [point for point in points if point.dataset == dataset]
    with style.settings():
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for place, method in enumerate(dict.fromkeys(point.method for point in chosen)):
            line = sorted((point for point in chosen if point.method == method), key=lambda point: point.shots)
            axes.errorbar(
                [point.shots for point in line],
                [point.mean for point in line],
                yerr=[point.sd or 0.0 for point in line],
                color=style.colour(place),
                marker=style.marker(place),
                markersize=5, linewidth=1.6, capsize=2, label=method,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        shots = sorted({point.shots for point in chosen})
        axes.set_xticks(shots, [str(n) for n in shots])
        axes.set_xlabel(f"supports ({_judged_by(chosen[0].common)})")
        axes.set_ylabel("Dice")
        axes.set_ylim(0, 1)
        style.quiet_grid(axes, "y")
        figure.legend(loc="outside upper left", frameon=False, fontsize=9)
        return style.to_svg(figure)


def _judged_by(common: Common) -> str:
    names = common.structures
    of = wording.listing(names) if len(names) < 4 else wording.count(len(names), "structure")
    return f"{wording.count(common.images, 'image')} of {of}"
