"""Running a command over several images: what is done, what failed and why."""

from collections.abc import Callable

import typer
from rich.table import Table
from rich.text import Text

from adaptmedseg.cli.common import bar, console
from adaptmedseg.errors import UserError
from adaptmedseg.inference.case_note import Outcome
from adaptmedseg.inference.cases import Products
from adaptmedseg.inference.naming import Case


def run_cases(cases: list[Case], products: Products, run: Callable[[Case], Outcome]) -> None:
    """All cases, the failed ones told at the end with their reasons."""
    done: dict[str, Outcome] = {}
    failed: dict[str, str] = {}
    with bar("predicting") as progress:
        for count, case in enumerate(cases, 1):
            try:
                done[case.name] = run(case)
                print(case.mask_path(products.out), flush=True)
            except UserError as error:
                if len(cases) == 1:
                    raise
                failed[case.name] = str(error)
                console.print(
                    f"failed: {case.image}", style="red", markup=False, soft_wrap=True
                )  # the reason: at the end
            progress(count, len(cases))
    if len(cases) > 1:
        console.print(_summary(done))
        for reason in failed.values():
            console.print(f"left out: {reason}", style="red", markup=False, soft_wrap=True)
        console.print(f"{len(done)} of {len(cases)} images segmented, {len(failed)} left out")
    if failed:
        raise typer.Exit(1 if done else 2)


def _summary(done: dict[str, Outcome]) -> Table:
    table = Table("case", "result", "seconds", box=None, pad_edge=False)
    for name, note in done.items():
        key, unit = ("volume_ml", "ml") if "volume_ml" in note else ("area_pixels", "pixels")
        sizes = ", ".join(f"{structure} {size:g} {unit}" for structure, size in note[key].items())
        table.add_row(Text(name), Text(sizes), f"{sum(note['seconds'].values()):.1f}")
    return table


def tell(sentence: str) -> None:
    console.print(f"note: {sentence}", style="yellow", markup=False, soft_wrap=True)
