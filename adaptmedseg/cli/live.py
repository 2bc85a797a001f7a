"""The live view of a training: loss, Dice by modality, throughput, time left, memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean

import torch
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from adaptmedseg.cli.common import TrainingLines, console
from adaptmedseg.inference.machine import PROC, peak_rss, readable
from adaptmedseg.training.rows import Row, Throughput

DICE = "val_dice"


class LiveView(TrainingLines):
    """Shows the last row of a training in a terminal, below the lines of what happened on the way."""

    def __init__(self, text: str, batch_size: int, device: torch.device, live: Live):
        super().__init__(text)
        self.device = device
        self.live = live
        self.throughput = Throughput(batch_size)
        self.begun = time.monotonic()
        self.first_done: float | None = None
        self.scores: dict[str, float] = {}

    def logged(self, done: float, row: Row) -> None:
        super().logged(done, row)
        now = time.monotonic()
        if self.first_done is None:
            self.first_done, self.begun = done, now
        self.scores = dice_by_modality(row) or self.scores
        gone = done - self.first_done
        left = (1 - done) * (now - self.begun) / gone if gone > 0 else None
        self.live.update(view(self.text, done, self.throughput(row), self.scores, left, used_memory(self.device)))


def dice_by_modality(row: Row) -> dict[str, float]:
    """Mean Dice of each modality, over structures, from a row's keys 'val_dice MODALITY, STRUCTURE'; empty without."""
    found: dict[str, list[float]] = {}
    for key, value in row.items():
        if key.startswith(f"{DICE} "):
            found.setdefault(key.removeprefix(f"{DICE} ").rpartition(", ")[0], []).append(value)
    return {modality: mean(values) for modality, values in found.items()}


def used_memory(device: torch.device) -> int | None:
    """Peak bytes of the device, or of the process on a CPU; None where it cannot be told."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss(PROC)


def view(text: str, done: float, row: Row, scores: dict[str, float], left: float | None, memory: int | None) -> Group:
    """A bar and a table; `left` in seconds, `memory` in bytes."""
    table = Table.grid(padding=(0, 3))
    cells = [f"step {row['step']:.0f}", f"loss {row['loss']:.3f}"]
    cells += [f"{row['samples_per_second']:.2f} samples/s"] if "samples_per_second" in row else []
    cells += [] if left is None else [f"{duration(left)} left"]
    cells += [] if memory is None else [f"peak memory {readable(memory)}"]
    table.add_row(*cells)
    parts: list[RenderableType] = [ProgressBar(total=1.0, completed=done, width=60), table]
    if scores:
        dice = Table.grid(padding=(0, 3))
        dice.add_row("validation Dice", *(f"{name} {value:.3f}" for name, value in scores.items()))
        parts.append(dice)
    return Group(text, *parts)


def duration(seconds: float) -> str:
    """As 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


@contextmanager
def live_view(text: str, batch_size: int, device: torch.device) -> Iterator[TrainingLines]:
    """An observer for a training: the live view in a terminal, plain lines in a log file."""
    if not console.is_terminal:
        yield TrainingLines(text)
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield LiveView(text, batch_size, device, live)
