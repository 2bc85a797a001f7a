"""`adaptmedseg bench training`, `training-memory` and `frozen`: what training costs."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from adaptmedseg.bench.frozen import TRAINED, compare_frozen
from adaptmedseg.bench.inference import SIZES, STRUCTURES
from adaptmedseg.bench.memory_table import (
    measure_row,
    read_rows,
    settings,
    shipped_rows,
    with_lora,
    write_rows,
)
from adaptmedseg.bench.training import measure_alone, measure_processes
from adaptmedseg.cli.bench_evaluation import app
from adaptmedseg.cli.bench_training_text import (
    HEADER,
    budget_report,
    cells,
    scaling_report,
    seconds_of,
    training_report,
)
from adaptmedseg.cli.common import Device, config_path, console, parse_overrides, split_names, text_table
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.config_file import load_config

Size = Annotated[str, typer.Option(help=f"Size of the base: {' or '.join(SIZES)}.")]
Config = Annotated[str, typer.Option(help="What is trained: a YAML file, or the name of a shipped one.")]
Table = Annotated[Path | None, typer.Option(help="Of --budget: a table measured by `bench training-memory`.")]


@app.command()
def training(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as batch_size=4.")] = None,
    config: Config = "adapt",
    size: Size = "small",
    processes: Annotated[str, typer.Option(help="Numbers of processes to compare.")] = "1,2",
    steps: Annotated[int, typer.Option(help="Steps to time; the fastest counts.", min=1)] = 3,
    budget: Annotated[str | None, typer.Option(help="Measure nothing; say what fits, such as 8GB.")] = None,
    table: Table = None,
    device: Device = "auto",
) -> None:
    """Time a configuration's training steps, in one process and in several that share the batch; random weights.

    Seconds of the processor, summed over processes and their threads, are less disturbed by other work than those of
    the clock on the wall.

    \b
    Examples:
      adaptmedseg bench training
      adaptmedseg bench training batch_size=4 precision=fp32 --config prostate --processes 1
      adaptmedseg bench training --size released --processes 1 batch_size=1 compute.gradient_checkpointing=true
      adaptmedseg bench training --budget 8GB
    """
    if budget is not None:
        for line in budget_report(budget, shipped_rows() if table is None else read_rows(table)):
            print(line)
        return
    chosen, counts = str(pick_device(device)), parse_counts(processes, device)
    asked = read_training(config, overrides)
    check_shares(asked, counts)
    of = SIZES[known_size(size)]
    console.print("measuring one process", style="dim")
    alone = measure_alone(of, asked, chosen, steps, with_rate=True)
    for line in training_report(size, asked, chosen, alone):
        print(line)
    if counts != [1]:
        console.print("measuring several processes", style="dim")
        for line in scaling_report(measure_processes(of, asked, chosen, steps, counts), asked.batch_size):
            print(line)


@app.command("training-memory")
def training_memory(
    out: Annotated[Path, typer.Option(help="CSV file; rows that it has are not measured again.")],
    size: Size = "small",
    config: Config = "adapt",
    only: Annotated[str | None, typer.Option(help="Numbers of rows to measure, from 0, by commas; or all.")] = None,
    device: Device = "auto",
) -> None:
    """Measure the memory of training steps by rank, batch, number format and gradient checkpointing, into a table.

    \b
    Examples:
      adaptmedseg bench training-memory --size small --out memory.csv
      adaptmedseg bench training-memory --size released --out memory.csv --only 8,9
      adaptmedseg bench training --budget 24GB --table memory.csv
    """
    chosen, asked = str(pick_device(device)), read_training(config, None)
    with_lora(asked)
    wanted = list(settings(known_size(size)))
    numbers = range(len(wanted)) if only is None else parse_numbers(only, len(wanted))
    rows = read_rows(out) if out.exists() else []
    for number in numbers:
        setting = wanted[number]
        if any((row.setting, row.device) == (setting, chosen) for row in rows):
            continue
        console.print(f"measuring row {number} of {len(wanted)}: {size}, {setting.overrides()}", style="dim")
        rows.append(measure_row(setting, asked, chosen))
        write_rows(out, rows)
    print(text_table(HEADER, [cells(row) for row in rows]))


@app.command()
def frozen(
    size: Size = "released",
    trained: Annotated[str, typer.Option(help=f"What is trained: {', '.join(TRAINED)}.")] = "decoder",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "bf16",
    steps: Annotated[int, typer.Option(help="Steps to time; the fastest counts.", min=1)] = 3,
    device: Device = "auto",
) -> None:
    """Time steps on stored embeddings against steps that encode their image, where the encoder is left alone.

    \b
    Examples:
      adaptmedseg bench frozen
      adaptmedseg bench frozen --size small --trained tokens
    """
    if trained not in TRAINED:
        raise UserError(f"--trained {trained}: choose one of {', '.join(TRAINED)}")
    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {precision}: choose fp32 or bf16")
    found = compare_frozen(known_size(size), trained, precision, str(pick_device(device)), steps)
    print(
        f"{size}, {trained} trained, {precision}, one image and one structure a step, {torch.get_num_threads()} threads"
    )
    for name, way in (("encoding each step", found.encoding), ("stored embeddings", found.stored)):
        print(f"{name}: {seconds_of(way)}")
    print(
        f"stored embeddings: steps {found.encoding.wall / found.stored.wall:.1f} times as fast, "
        f"{found.encoding.processor / found.stored.processor:.1f} times less of the processor"
    )


def read_training(config: str, overrides: list[str] | None) -> TrainConfig:
    """The configuration to measure. UserError where it is none of a SegVol that is trained with its encoder."""
    asked = load_config(config_path(config), TrainConfig, parse_overrides(overrides or []))
    if asked.model != "segvol" or asked.grow is not None:
        raise UserError(f"{config}: measured are trainings of a base, with or without a new adapter; choose such a one")
    if asked.data.embeddings is not None:
        raise UserError(f"{config}: trains on stored embeddings; take `adaptmedseg bench frozen`")
    if asked.structures_per_image > len(STRUCTURES):
        raise UserError(f"structures_per_image {asked.structures_per_image}: at most {len(STRUCTURES)} here; lower it")
    return asked


def known_size(size: str) -> str:
    """A size of a base. UserError for others."""
    if size not in SIZES:
        raise UserError(f"--size {size}: choose one of {', '.join(SIZES)}")
    return size


def parse_numbers(text: str, below: int) -> list[int]:
    """'0,3' to numbers below a limit. UserError for anything else."""
    names = split_names(text) or []
    if not names or not all(name.isdecimal() and int(name) < below for name in names):
        raise UserError(f"--only {text}: give numbers from 0 to {below - 1}, separated by commas")
    return [int(name) for name in names]


def parse_counts(text: str, device: str) -> list[int]:
    """'1,2' to numbers of processes that this machine has room for. UserError for anything else."""
    names = split_names(text) or []
    if not names or not all(name.isdecimal() and int(name) for name in names):
        raise UserError(f"--processes {text}: give numbers of processes, such as 1,2")
    counts = sorted({int(name) for name in names})
    on_gpu = pick_device(device).type == "cuda"
    if on_gpu and counts[-1] > torch.cuda.device_count():
        raise UserError(
            f"--processes {text}: there are {torch.cuda.device_count()} graphics processors here; give at most so many"
        )
    return counts


def check_shares(config: TrainConfig, counts: list[int]) -> None:
    """UserError where some number of processes cannot share the batch."""
    for count in counts:
        if config.batch_size % count:
            raise UserError(f"batch_size {config.batch_size}: {count} processes cannot share it; make it a multiple")
