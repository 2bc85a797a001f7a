"""`adaptmedseg bench metrics`, `report` and `confidence`: cost of measuring and of reports, worth of confidence."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from adaptmedseg.bench.metrics import MetricsCost, compare_metrics
from adaptmedseg.bench.report import measure_report
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
def report(
    out: Annotated[Path, typer.Option(help="Folder for the report.")],
    cases: Annotated[int, typer.Option(help="Cases, half of them CT.", min=2)] = 50,
    structures: Annotated[int, typer.Option(help="Structures of each.", min=1)] = 13,
    methods: Annotated[int, typer.Option(help="Methods side by side.", min=2)] = 3,
    shape: Annotated[str, typer.Option(help="Voxels of the volumes whose pictures are drawn, d,h,w.")] = "100,320,320",
) -> None:
    """Time the report of made-up scores, pictures drawn, and weigh its page.

    \b
    Examples:
      adaptmedseg bench report --out runs/bench_report
      adaptmedseg bench report --cases 6 --structures 2 --shape 24,96,96 --out runs/bench_report     (seconds)
    """
    if (out / "results.csv").exists():
        raise UserError(f"{out}: holds another report; choose a new folder for --out")
    found = measure_report(out, cases, structures, methods, parse_shape(shape))
    print(
        f"{cases} cases, {structures} structures, {methods} methods: {found.pictures} pictures drawn in "
        f"{found.draw:.1f} s, report written in {found.write:.1f} s, {found.draw + found.write:.1f} s in all "
        f"({found.processor:.1f} s of the processor); page {found.page_mb:.1f} MB"
    )


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
