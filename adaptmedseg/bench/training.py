"""What the steps of a training cost: time, memory, and what more processes bring; random weights, generated views."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adaptmedseg.bench.inference import peak_bytes
from adaptmedseg.bench.process import in_own_process, in_processes
from adaptmedseg.bench.steps import (
    MODALITY,
    Seconds,
    StepSeconds,
    build_model,
    build_stream,
    count_flop,
    fastest,
    generated_view,
    time_steps,
    timed,
)
from adaptmedseg.device import keep_freed_memory
from adaptmedseg.inference.machine import Bytes
from adaptmedseg.models.segvol import SegVolConfig
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.engine import Engine
from adaptmedseg.training.processes import Processes
from adaptmedseg.training.sampling import Share


@dataclass(frozen=True)
class Measured:
    """A process's steps: seconds of the fastest, peak memory on its device and how much of that the program had before
    there was a model (main memory; 0 on a graphics processor), and trained numbers.

    `flop` are the operations of a step's products and `product` a bare one's operations and seconds, in the step's
    number format; None where they were not asked for.
    """

    seconds: StepSeconds
    peak: Bytes
    program: Bytes
    trained: int
    threads: int
    flop: int | None = None
    product: tuple[int, Seconds] | None = None


def measure(of: SegVolConfig, config: TrainConfig, device: str, steps: int, threads: int, with_rate: bool) -> Measured:
    """Steps in this process, with its part of every batch where there are others beside it."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    processes = Processes.join(torch.device(device))
    place = torch.device(f"cuda:{processes.rank}" if device == "cuda" and processes.count > 1 else device)
    program = peak_bytes("cpu") if place.type == "cpu" else 0
    model = build_model(of, config)
    stream = build_stream(config, [generated_view(of, config.structures_per_image)])
    stream.share = Share(processes.rank, 1, processes.count)
    engine = Engine(model, [MODALITY], config, place)
    seconds = time_steps(engine, stream, steps)
    peak = peak_bytes(str(place))
    flop = product = None
    if with_rate:
        flop = count_flop(engine, stream)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
        product = time_product(of, config.batch_size, dtype, place)
    return Measured(seconds, peak, program, engine.trained_numbers, threads, flop, product)


def time_product(of: SegVolConfig, images: int, dtype: torch.dtype, device: torch.device) -> tuple[int, Seconds]:
    """Operations and seconds (the fastest of ten) of the product of an encoder's MLP into its hidden layer, over all
    tokens of some images."""
    tokens = images * math.prod(n // p for n, p in zip(of.spatial_size, of.patch_size, strict=True))
    x, weight = (torch.randn(rows, of.embed_dim, device=device).to(dtype) for rows in (tokens, of.mlp_dim))
    times = [timed(device, lambda: torch.nn.functional.linear(x, weight))[1] for _ in range(11)]
    return 2 * tokens * of.embed_dim * of.mlp_dim, fastest(times[1:])


def measure_alone(
    of: SegVolConfig, config: TrainConfig, device: str, steps: int, *, with_rate: bool = False
) -> Measured:
    """Steps of one process of its own, with as many threads as this one has."""
    return in_own_process(config.name, measure, of, config, device, steps, torch.get_num_threads(), with_rate)


def measure_processes(
    of: SegVolConfig, config: TrainConfig, device: str, steps: int, counts: Sequence[int]
) -> dict[int, list[Measured]]:
    """The same training by different numbers of processes, which share its batch. On a CPU each process has as many
    threads as are left to it where there are most of them."""
    threads = max(1, torch.get_num_threads() // max(counts))
    return {
        count: in_processes(f"{count} processes", count, measure, of, config, device, steps, threads, False)
        for count in counts
    }
