"""Training curves from the history that training writes: loss and validation Dice against steps or minutes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from adaptmedseg.evaluation import style

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Curve:
    """What to draw: the key in the history's entries, the axis label, and whether the raw values are noisy."""

    key: str
    label: str
    noisy: bool


CURVES = (Curve("loss", "training loss", noisy=True), Curve("val_dice", "validation Dice", noisy=False))


def points(history: History, x_key: str, y_key: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The finite pairs (x, y) of the entries that have both keys, in order of x."""
    pairs = [(entry.get(x_key), entry.get(y_key)) for entry in history]
    finite = sorted((float(x), float(y)) for x, y in pairs if x is not None and y is not None and np.isfinite(y))
    array = np.asarray(finite, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def smooth(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Centred running mean over `window` values, over fewer at the two ends."""
    kernel = np.ones(min(window, max(len(values), 1)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def curve_svg(histories: Mapping[str, History], curve: Curve, x_key: str = "step") -> str | None:
    """SVG of one curve for every run, or None when no run has two points of it.

    `histories` maps a run's label to its entries, dicts with `step` and/or `minutes` and the curves' keys; entries
    without a key (validation is rarer than steps) are left out of its curve. `x_key` is 'step' or 'minutes'.
    """
    drawn = {run: points(history, x_key, curve.key) for run, history in histories.items()}
    drawn = {run: (x, y) for run, (x, y) in drawn.items() if len(x) > 1}
    if not drawn:
        return None
    with style.settings():
        figure = Figure(figsize=(5.4, 2.9 + 0.2 * len(drawn)), layout="constrained")
        axes = figure.add_subplot()
        for place, run in enumerate(histories):
            if run not in drawn:
                continue
            x, y = drawn[run]
            colour = style.colour(place + 1)
            dashes = ("solid", "dashed", "dashdot", "dotted")[place % 4]
            if curve.noisy and len(x) > 30:
                axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.3)
                y = smooth(y, max(len(y) // 25, 3))
            marker = style.marker(place) if len(x) <= 40 else ""
            axes.plot(x, y, color=colour, linestyle=dashes, marker=marker, markersize=4, linewidth=1.6, label=run)
        axes.set_xlabel("minutes of training" if x_key == "minutes" else "optimiser steps")
        axes.set_ylabel(curve.label)
        style.quiet_grid(axes, "y")
        figure.legend(loc="outside upper left", frameon=False, fontsize=9, borderaxespad=0)
        return style.to_svg(figure)


def best_x_key(histories: Mapping[str, History]) -> str:
    """'step' where every history has it, else 'minutes'."""
    has_steps = all(any("step" in entry for entry in history) for history in histories.values())
    return "step" if has_steps else "minutes"
