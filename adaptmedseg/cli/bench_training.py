"""`adaptmedseg bench training`, `training-memory` and `frozen`: what training costs."""

import re
from pathlib import Path
from typing import Annotated

import torch
import typer

from adaptmedseg.bench.frozen import TRAINED, compare_frozen
from adaptmedseg.bench.inference import SIZES, STRUCTURES
from adaptmedseg.bench.memory_table import (
    CONTEXT,
    MARGIN,
    Row,
    measure_row,
    proposals,
    read_rows,
    settings,
    shipped_rows,
    smallest,
    with_lora,
    write_rows,
)
from adaptmedseg.bench.steps import Seconds, StepSeconds
from adaptmedseg.bench.training import Measured, measure_alone, measure_processes
from adaptmedseg.cli.bench_evaluation import app
from adaptmedseg.cli.common import Device, config_path, console, parse_overrides, split_names, text_table
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.inference.machine import Bytes, readable
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.config_file import load_config

Size = Annotated[str, typer.Option(help=f"Size of the base: {' or '.join(SIZES)}.")]
Config = Annotated[str, typer.Option(help="What is trained: a YAML file, or the name of a shipped one.")]
Table = Annotated[Path | None, typer.Option(help="Of --budget: a table measured by `bench training-memory`.")]
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


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


HEADER = ["size", "view", "rank", "images", "structures", "format", "checkpointing", "peak MiB", "training MiB",
          "processor s", "device"]  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row of the table of memory as text."""
    of = row.setting
    rank, again = str(of.rank or "all weights"), "yes" if of.checkpointing else "no"
    figures = [f"{row.peak_mib:,}", f"{row.training_mib:,}", f"{row.processor_seconds:.2f}", row.device]
    return [of.size, of.view, rank, str(of.images), str(of.structures), of.precision, again, *figures]


def budget_report(budget: str, rows: list[Row]) -> list[str]:
    """What fits into so much memory, in lines."""
    bytes_ = parse_bytes(budget)
    rule = (
        f"needed: what the step took where it was measured ({', '.join(sorted({row.device for row in rows}))}), "
        f"times {MARGIN:g}, and {readable(CONTEXT)} for the graphics processor's driver"
    )
    found = proposals(rows, bytes_)
    if not found:
        least = smallest(rows)
        said = (
            f"the least of the table is {readable(least.needed())}: {least.setting.size}, {least.setting.overrides()}"
        )
        return [f"{budget}: nothing of the table fits; {said}", rule]
    lines = [f"{budget}: fits, by size of the base, the most images and structures at once"]
    for row in found:
        lines.append(f"{row.setting.size}: {readable(row.needed())}: {row.setting.overrides()}")
    return [*lines, rule, "larger batches in pieces of these: batch_size and compute.accumulate, both times the same"]


def training_report(size: str, config: TrainConfig, device: str, found: Measured) -> list[str]:
    """One process's figures in lines."""
    of = found.seconds
    lines = [
        f"{config.name}, base size {size}, {config.batch_size} images of {config.structures_per_image} structures a "
        f"step, {config.precision}, {device}, {found.threads} threads, {found.trained:,} trained parameters",
        f"step: {seconds_of(of)}; {config.batch_size / of.wall:.2f} images a second",
        f"peak memory: {readable(found.peak)}, of which model and training take {readable(found.peak - found.program)}",
    ]
    if found.flop is not None and found.product is not None:
        lines.append(product_report(found.flop, of.step, *found.product, on_cpu=device == "cpu"))
    return lines


def product_report(flop: int, step: Seconds, bare_flop: int, bare: Seconds, *, on_cpu: bool) -> str:
    """How near a step's products come to the rate of a bare one; on a CPU by seconds of the processor."""
    seconds, bare_seconds = (step.processor, bare.processor) if on_cpu else (step.wall, bare.wall)
    rate, bare_rate = flop / seconds, bare_flop / bare_seconds
    by = " of the processor" if on_cpu else ""
    return (
        f"products: {flop / 1e9:.0f} GFLOP a step, {rate / 1e9:.0f} in a second{by}; a bare product of the encoder's "
        f"shape {bare_rate / 1e9:.0f}, of which a step reaches {rate / bare_rate:.0%}"
    )


def scaling_report(found: dict[int, list[Measured]], images: int) -> list[str]:
    """Figures of several numbers of processes, each against the smallest of them."""
    slowest = {count: max(one.seconds.wall for one in all_) for count, all_ in found.items()}
    work = {count: sum(one.seconds.processor for one in all_) for count, all_ in found.items()}
    first = min(found)
    return [
        f"{count} processes of {all_[0].threads} threads: {slowest[count]:.2f} s a step, "
        f"{images / slowest[count]:.2f} images a second, {slowest[first] / slowest[count]:.2f} times as fast as "
        f"{first}; of all processors {work[count]:.2f} s, {work[count] / work[first]:.2f} times as much; peak of each "
        f"{readable(max(one.peak for one in all_))}"
        for count, all_ in found.items()
    ]


def seconds_of(found: StepSeconds) -> str:
    """Seconds of a step in words."""
    return (
        f"{found.wall:.3f} s (making the batch {found.batch.wall:.3f} s, step {found.step.wall:.3f} s), of the "
        f"processor {found.processor:.3f} s"
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


def parse_bytes(text: str) -> Bytes:
    """'8GB' or '7.5 GiB' to bytes. UserError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B)\s*", text.upper())
    if match is None or match[2] not in UNITS or not float(match[1]):
        raise UserError(f"--budget {text}: give an amount of memory, such as 8GB or 7.5GiB")
    return int(float(match[1]) * UNITS[match[2]])
