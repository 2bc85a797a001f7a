"""`adaptmedseg bench metrics` and `confidence`: what measuring costs, and how well confidence ranks masks."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from adaptmedseg.bench.metrics import MetricsCost, compare_metrics
from adaptmedseg.cli.bench import app, parse_shape
from adaptmedseg.cli.calibrate import judge_sets, ranking_report
from adaptmedseg.cli.common import Device, Seed, console, named_pairs
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.confidence import Judged
from adaptmedseg.inference.loading import load_model


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


@app.command()
def confidence(
    model: Annotated[list[str], typer.Option(help="FOLD=MODEL, repeated; or test=MODEL or val=MODEL for a split.")],
    data: Annotated[list[Path], typer.Option(help="Prepared data set(s).")],
    structures: Annotated[str | None, typer.Option(help="Names separated by commas; all by default.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Hold confidence against true Dice on unseen cases: rank correlation, and estimates calibrated on other folds.

    \b
    Examples:
      adaptmedseg bench confidence --model 0=runs/real/adapted0 --model 1=runs/real/adapted1 --data runs/real/promise12
      adaptmedseg bench confidence --model test=runs/my_mri --data prepared/my_mri
    """
    judged: list[Judged] = []
    for name, path in named_pairs(model, "--model").items():
        if not name.isdigit() and name not in ("test", "val"):
            raise UserError(f"--model {name}={path}: write FOLD=MODEL, test=MODEL or val=MODEL")
        fold = int(name) if name.isdigit() else None
        split = "test" if fold is not None else name
        judged += judge_sets(load_model(path), name, data, split, fold, structures, str(pick_device(device)))
    for one in judged:
        print(
            f"{one.group}  {one.case}  {one.structure}  Dice {one.dice:.3f}  agreement {one.evidence.agreement:.3f}  "
            f"sharpness {one.evidence.sharpness:.3f}"
        )
    for line in ranking_report(judged, seed):
        print(line)
