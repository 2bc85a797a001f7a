"""`adaptmedseg bench metrics`: what measuring costs."""

from typing import Annotated

import numpy as np
import typer

from adaptmedseg.bench.metrics import MetricsCost, compare_metrics
from adaptmedseg.cli.bench import app, parse_shape
from adaptmedseg.cli.common import console


@app.command()
def metrics(
    shape: Annotated[str, typer.Option(help="Voxels of the volume, d,h,w.")] = "100,320,320",
    structures: Annotated[int, typer.Option(help="Structures in it.", min=1)] = 13,
    repeats: Annotated[int, typer.Option(help="Pairs of measurements.", min=1)] = 3,
) -> None:
    """Time all measures of a generated case against MONAI's functions called one by one, in pairs.

    \b
    Examples:
      adaptmedseg bench metrics
      adaptmedseg bench metrics --shape 24,128,128 --structures 3     (seconds)
    """
    found = compare_metrics(parse_shape(shape), structures, repeats, lambda text: console.print(text, style="dim"))
    for line in metrics_report(found):
        print(line)


def metrics_report(found: MetricsCost) -> list[str]:
    """The figures as lines of text."""
    differences = ", ".join(f"{name} {value:.1e}" for name, value in found.differences.items())
    return [
        f"ours {np.median(found.ours):.2f} s, MONAI {np.median(found.monai):.2f} s, {found.ratio:.1f} times as fast "
        f"(median of {len(found.ours)} pairs)",
        f"processor: ours {np.median(found.ours_cpu):.2f} s, MONAI {np.median(found.monai_cpu):.2f} s, "
        f"{found.cpu_ratio:.1f} times less",
        f"largest differences: {differences}",
    ]
