"""One look for all figures: a colour-blind-safe palette (Okabe & Ito) and SVGs that are the same every time."""

import base64
import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1f2328"
MUTED = "#6b7280"
RULE = "#d5d8dc"
PALETTE = ("#6b6b6b", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "font.size": 10,
    "svg.hashsalt": "adaptmedseg",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
}


def colour(number: int) -> str:
    """The colour of the line or group with a number, from 0; they begin again after the last."""
    return PALETTE[number % len(PALETTE)]


def marker(number: int) -> str:
    """As `colour`, its marker."""
    return MARKERS[number % len(MARKERS)]


def settings() -> Any:
    """Context in which figures are drawn."""
    return matplotlib.rc_context(_SETTINGS)


def to_svg(figure: Figure) -> str:
    """The figure as SVG text, the same for the same data."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def quiet_grid(axes: Axes, axis: str) -> None:
    """Thin grid lines behind the data along one axis ('x' or 'y')."""
    axes.set_axisbelow(True)
    axes.grid(axis="x" if axis == "x" else "y", color=RULE, linewidth=0.6)
    axes.tick_params(length=0)


def data_uri(content: bytes | str, kind: str) -> str:
    """`content` as a data URI of the media type `kind`, for a page without further files."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
