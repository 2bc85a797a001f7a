"""What the steps of a training cost: time, memory, and what more processes bring; random weights, generated views."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adaptmedseg.bench.inference import peak_bytes
from adaptmedseg.bench.process import in_own_process, in_processes
from adaptmedseg.bench.products import product_rate
from adaptmedseg.bench.steps import (
    MODALITY,
    StepSeconds,
    build_model,
    build_stream,
    count_flop,
    generated_view,
    time_steps,
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

    `flop` are the operations of a step's products and `rate` the FLOP/s of a bare one, in the step's number format;
    None where they were not asked for.
    """

    seconds: StepSeconds
    peak: Bytes
    program: Bytes
    trained: int
    threads: int
    flop: int | None = None
    rate: float | None = None

    @property
    def share(self) -> float | None:
        """Of the rate of bare products, what the step comes to."""
        if self.flop is None or self.rate is None:
            return None
        return self.flop / self.seconds.step.wall / self.rate


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
    flop = rate = None
    if with_rate:
        flop = count_flop(engine, stream)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
        rate = product_rate(of, config.batch_size, dtype, str(place))
    return Measured(seconds, peak, program, engine.trained_numbers, threads, flop, rate)


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
