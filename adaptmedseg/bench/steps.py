"""Real training steps on a generated view: what benchmarks of training have in common."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adaptmedseg.bench.inference import STRUCTURES, bench_volume
from adaptmedseg.device import wait_for
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.segvol import SegVol, SegVolConfig
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.engine import Engine
from adaptmedseg.training.run import freeze_text_tower
from adaptmedseg.training.sampling import BatchStream
from adaptmedseg.training.views import CachedView

MODALITY = "T2 MRI"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Seconds:
    """By the clock on the wall, and of the processor over all threads; the latter is less disturbed by other work."""

    wall: float
    processor: float


@dataclass(frozen=True)
class StepSeconds:
    """The fastest of several steps: making a batch, and the step itself."""

    batch: Seconds
    step: Seconds

    @property
    def wall(self) -> float:
        return self.batch.wall + self.step.wall

    @property
    def processor(self) -> float:
        return self.batch.processor + self.step.processor


def timed(device: torch.device, work: Callable[[], Value]) -> tuple[Value, Seconds]:
    """What `work` gives, and how long it took."""
    wait_for(device)
    wall, processor = time.perf_counter(), time.process_time()
    value = work()
    wait_for(device)
    return value, Seconds(time.perf_counter() - wall, time.process_time() - processor)


def generated_view(of: SegVolConfig, structures: int) -> CachedView:
    """A smooth view of a model's input size, in which structures are boxes beside each other."""
    d, h, w = of.spatial_size
    labels = np.zeros((d, h, w), np.uint32)
    width = w // 2 // structures
    for bit in range(structures):
        labels[d // 4 : d // 2, h // 4 : h // 2, width * bit : width * (bit + 1)] = 1 << bit
    names = STRUCTURES[:structures]
    return CachedView(
        MODALITY,
        torch.from_numpy(bench_volume((d, h, w))).half(),
        labels,
        {name: bit for bit, name in enumerate(names)},
        {name: name for name in names},
    )


def build_model(of: SegVolConfig, config: TrainConfig) -> nn.Module:
    """A model with random weights; a whole base where the configuration has no adapter."""
    torch.manual_seed(0)
    base = SegVol(of)
    if config.adapter is None:
        freeze_text_tower(base)
        return base
    return AdaptedSegVol(base, config.adapter, STRUCTURES, [MODALITY])


def build_stream(config: TrainConfig, views: list[CachedView]) -> BatchStream:
    """The batches that a configuration asks for."""
    return BatchStream(
        views, config.batch_size, config.structures_per_image, config.prompts, config.augment, config.seed
    )


def time_steps(engine: Engine, stream: BatchStream, steps: int) -> StepSeconds:
    """Make one step to warm up and `steps` more; the fastest batch and the fastest step count."""
    made = iter(stream)
    batches, updates = [], []
    for _ in range(steps + 1):
        batch, seconds = timed(engine.device, lambda: next(made))
        batches.append(seconds)
        updates.append(timed(engine.device, lambda of=batch: engine.step([of], 0.5))[1])  # type: ignore[misc]
    return StepSeconds(fastest(batches[1:]), fastest(updates[1:]))


def count_flop(engine: Engine, stream: BatchStream) -> int:
    """Floating-point operations of the matrix products and convolutions of a step, forward and back, as they are done:
    those that gradient checkpointing does a second time among them."""
    counter = FlopCounterMode(display=False)
    with counter:
        engine.step([stream.batch(0)], 0.5)
    return counter.get_total_flops()


def fastest(times: list[Seconds]) -> Seconds:
    """The smallest of each clock."""
    return Seconds(min(t.wall for t in times), min(t.processor for t in times))
