"""The figures of `adaptmedseg bench training` and its kin as text."""

import re

from adaptmedseg.bench.memory_table import CONTEXT, MARGIN, Row, proposals, smallest
from adaptmedseg.bench.steps import Seconds, StepSeconds
from adaptmedseg.bench.training import Measured
from adaptmedseg.errors import UserError
from adaptmedseg.inference.machine import Bytes, readable
from adaptmedseg.training.config import TrainConfig

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
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


def parse_bytes(text: str) -> Bytes:
    """'8GB' or '7.5 GiB' to bytes. UserError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B)\s*", text.upper())
    if match is None or match[2] not in UNITS or not float(match[1]):
        raise UserError(f"--budget {text}: give an amount of memory, such as 8GB or 7.5GiB")
    return int(float(match[1]) * UNITS[match[2]])
