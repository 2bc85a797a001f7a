"""What several commands share: options, progress bars, names of configurations."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adaptmedseg.errors import UserError
from adaptmedseg.training.observer import Observer

console = Console(stderr=True)  # standard output is kept for results that scripts read

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
Structures = Annotated[str | None, typer.Option(help="Names separated by commas; all that the data holds by default.")]


@contextmanager
def bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; the function it gives takes (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class TrainingLines(Observer):
    """Tells of a training in lines: validations, notes, and, in a log file, a line every tenth of the budget."""

    def __init__(self, text: str):
        self.text = text
        self.told = 0

    def started(self, step: int) -> None:
        if step:
            self._print(f"{self.text}: goes on after step {step}")

    def logged(self, done: float, row: dict[str, float]) -> None:
        if "val_dice" in row:
            self._print(f"{self.text}: step {row['step']}, validation Dice {row['val_dice']:.3f}")
        if not console.is_terminal and int(done * 10) > self.told:
            self.told = int(done * 10)
            print(f"{self.text}: {done:.0%}  {last_figures(row)}", file=sys.stderr, flush=True)

    def noted(self, text: str) -> None:
        self._print(f"note: {text}")

    def _print(self, text: str) -> None:
        console.print(text, markup=False, soft_wrap=True, highlight=False)


def last_figures(row: dict[str, float]) -> str:
    """A row's step and loss."""
    return f"step {row['step']}  loss {row['loss']:.3f}"


class TrainingBar(TrainingLines):
    """Shows a training in a progress bar as well."""

    def __init__(self, text: str, progress: Progress):
        super().__init__(text)
        self.progress = progress
        self.task = progress.add_task(text, total=1.0, row="")

    def logged(self, done: float, row: dict[str, float]) -> None:
        super().logged(done, row)
        self.progress.update(self.task, completed=done, row=last_figures(row))


@contextmanager
def training_bar(text: str) -> Iterator[TrainingBar]:
    """A progress bar for training."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[row]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield TrainingBar(text, progress)


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as they need to be; nothing is cut, so that scripts may read it too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def split_names(names: str | None) -> list[str] | None:
    """Names separated by commas."""
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def config_path(name: str) -> Path:
    """A configuration by path or by the name of a shipped one."""
    path = Path(name)
    if path.is_file() or path.suffix:
        return path
    folder = Path(str(resources.files("adaptmedseg.configs")))
    shipped = folder / f"{name}.yaml"
    if not shipped.exists():
        found = sorted(p.relative_to(folder) for p in folder.rglob("*.yaml"))
        known = ", ".join(p.with_suffix("").as_posix() for p in sorted(found, key=lambda p: len(p.parts)))
        raise UserError(f"configuration '{name}': neither a file nor a shipped one; shipped are {known}")
    return shipped


def parse_overrides(pairs: list[str]) -> dict[str, object]:
    """['budget.minutes=5', ...] to {'budget.minutes': 5, ...}; values are read as YAML."""
    values: dict[str, object] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UserError(f"'{pair}': an override has the form key=value, such as budget.minutes=5")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"'{pair}': the value cannot be read; quote it as in YAML") from None
    return values


def named_pairs(items: list[str], option: str) -> dict[str, str]:
    """['base=small', ...] to {'base': 'small', ...}."""
    pairs = {}
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not name or not value:
            raise UserError(f"{option} {item}: has the form NAME=VALUE; write it so")
        if name.strip() in pairs:
            raise UserError(f"{option} {item}: '{name.strip()}' is given twice; give each once")
        pairs[name.strip()] = value.strip()
    return pairs
