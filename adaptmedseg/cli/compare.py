"""`adaptmedseg compare`: strategies of adaptation on the same data, with the same seeds and budget, in one table."""

import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from adaptmedseg.cli.common import Device, config_path, console, split_names, text_table
from adaptmedseg.comparison.compare import label_of, run_tasks
from adaptmedseg.comparison.outcome import read_outcomes
from adaptmedseg.comparison.plan import Plan, claim, make_plan, settings_of, tasks_of
from adaptmedseg.comparison.strategies import Strategy, load_strategies
from adaptmedseg.comparison.table import build_table
from adaptmedseg.comparison.write import HEADER, cells, notes_of, write_comparison
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.training.config import BudgetConfig, NoTraining

ALL = "all"


def compare(
    strategies: Annotated[
        list[str] | None, typer.Argument(help="Shipped names (such as lora, gated) or YAML files; all shipped ones.")
    ] = None,
    data: Annotated[list[Path], typer.Option(help="Prepared data set(s) to train on and to test on.")] = [],  # noqa: B006
    old: Annotated[list[Path], typer.Option(help="Prepared data set(s) like those of the base.")] = [],  # noqa: B006
    base: Annotated[str, typer.Option(help="Base that all start from: known name, file or run folder.")] = "small",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1",
    minutes: Annotated[float | None, typer.Option(help="Minutes of each training; or give --steps.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each training; or give --minutes.")] = None,
    patients: Annotated[
        str, typer.Option(help="Train on so many patients of each new set, drawn by seed: all, 5, or 1,2,5,10,all.")
    ] = ALL,
    fold: Annotated[
        str | None, typer.Option(help="Keep a fold aside instead of the test split: 0, or several as 0,1,2.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="Tested against; the base without training by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the comparison; run again to continue.")] = Path("runs/compare"),
    device: Device = "auto",
) -> None:
    """Train strategies on the same data, seeds and budget; one table of Dice on new and old data, size, time, memory.

    What is finished in --out is not trained again. Exit code 1 where a strategy failed. Several --patients or folds
    make a comparison each, in folders of --out that `adaptmedseg transfer` judges together.

    \b
    Examples:
      adaptmedseg compare lora gated full --data prepared/mri --old prepared/ct --minutes 5 --out runs/compare
      adaptmedseg compare --data prepared/t2 --data prepared/cine --old prepared/ct --steps 300 --seeds 0,1,2
      adaptmedseg compare gated unet --data prepared/saml --fold 0,1,2,3,4,5 --patients 1,2,5,all --steps 300
    """
    budget = _budget(minutes, steps)
    numbers = _seeds(seeds)
    pick_device(device)
    paths = [_strategy_path(name) for name in strategies or _shipped()]
    if not data:
        raise UserError("no data to train on: give prepared data sets with --data")
    load_strategies(paths, {})  # what is wrong with a name is said before data are opened
    plans = {
        out / folder: make_plan(data, old, base, budget, kept, count)
        for folder, kept, count in conditions(patients, fold)
    }
    failed = False
    for place, plan in plans.items():
        failed |= not _compare(place, plan, paths, numbers, reference, device)
    if failed:
        raise typer.Exit(1)


def _compare(
    out: Path, plan: Plan, paths: Sequence[Path], seeds: Sequence[int], reference: str | None, device: str
) -> bool:
    """One comparison; returns whether all of it went well."""
    chosen = load_strategies(paths, settings_of(plan.terms))
    untrained = next(strategy.name for strategy in chosen if isinstance(strategy, NoTraining))
    against = _reference(reference, chosen, untrained)
    tasks = tasks_of(plan, chosen, seeds, out)
    claim(out, plan.terms, tasks)
    failures = run_tasks(tasks, device, lambda line: console.print(line, markup=False, soft_wrap=True))
    outcomes = read_outcomes(tasks)
    if outcomes:
        rows = build_table(outcomes, plan.new_names, untrained, against)
        page = write_comparison(out, plan, outcomes, rows, untrained, against).html
        print(text_table(HEADER, [cells(row) for row in rows]))
        print("\n".join(notes_of(plan, against)))
        print(page)
    for failure in failures:
        print(f"error: {label_of(failure.task)}: {failure.sentence}", file=sys.stderr)
    return not failures


def conditions(patients: str, fold: str | None) -> list[tuple[str, int | None, int | None]]:
    """Every combination of fold and number of patients, with the folder of its comparison below --out, which is --out
    itself where there is one alone. UserError for what is no list of numbers."""
    counts = [None if word == ALL else _whole("--patients", word, 1) for word in split_names(patients) or []]
    folds = [None] if fold is None else [_whole("--fold", word, 0) for word in split_names(fold) or []]
    for option, text, values in (("--patients", patients, counts), ("--fold", fold, folds)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"{option} {text}: give different whole numbers separated by commas")
    found = []
    for kept in folds:
        for count in counts:
            parts = [f"fold{kept}"] if len(folds) > 1 else []
            parts += [f"patients_{ALL if count is None else count}"] if len(counts) > 1 else []
            found.append(("/".join(parts), kept, count))
    return found


def _whole(option: str, word: str, least: int) -> int:
    if not word.isdecimal() or int(word) < least:
        either = f" or {ALL}" if option == "--patients" else ""
        raise UserError(f"{option} {word}: give whole numbers from {least} on{either}")
    return int(word)


def _shipped() -> list[str]:
    """Names of the shipped strategies, the one that trains nothing first."""
    folder = Path(str(resources.files("adaptmedseg.configs"))) / "strategies"
    return sorted((path.stem for path in folder.glob("*.yaml")), key=lambda name: (name != "zero_shot", name))


def _strategy_path(name: str) -> Path:
    """A shipped strategy by its short name, or any configuration as `train` finds it."""
    if name in _shipped():
        return config_path(f"strategies/{name}")
    try:
        return config_path(name)
    except UserError:
        known = ", ".join(_shipped())
        raise UserError(f"strategy '{name}': neither a file nor a shipped one; shipped are {known}") from None


def _budget(minutes: float | None, steps: int | None) -> BudgetConfig:
    try:
        return BudgetConfig(minutes=minutes, steps=steps)
    except ValidationError:
        raise UserError(
            f"--minutes {minutes}, --steps {steps}: give one of them, above 0, as the budget of each training"
        ) from None


def _seeds(text: str) -> list[int]:
    found = split_names(text) or []
    if not found or not all(seed.isdecimal() for seed in found) or len(set(found)) < len(found):
        raise UserError(f"--seeds {text}: give different whole numbers separated by commas, such as 0,1")
    return [int(seed) for seed in found]


def _reference(name: str | None, chosen: list[Strategy], untrained: str) -> str:
    names = [strategy.name for strategy in chosen]
    if name is not None and name not in names:
        raise UserError(f"--reference {name}: is not compared here; choose one of {', '.join(names)}")
    return name or untrained
