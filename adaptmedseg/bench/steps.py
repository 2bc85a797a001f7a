"""Real training steps on a generated view: what benchmarks of training have in common."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from adaptmedseg.bench.inference import SIZES, bench_volume
from adaptmedseg.device import wait_for
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.engine import Engine
from adaptmedseg.training.run import freeze_text_tower
from adaptmedseg.training.sampling import BatchStream
from adaptmedseg.training.views import CachedView

MODALITY = "T2 MRI"
NAMES = ("prostate", "bladder", "rectum", "uterus")
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


def generated_view(size: str, structures: int) -> CachedView:
    """A smooth view of a model of a size of `SIZES`, in which structures are boxes beside each other."""
    shape = SIZES[size].spatial_size
    labels = np.zeros(shape, np.uint8)
    width = shape[2] // 2 // structures
    for bit in range(structures):
        labels[shape[0] // 4 : shape[0] // 2, shape[1] // 4 : shape[1] // 2, width * bit : width * (bit + 1)] = 1 << bit
    names = NAMES[:structures]
    return CachedView(
        MODALITY,
        torch.from_numpy(bench_volume(shape)).half(),
        labels,
        {name: bit for bit, name in enumerate(names)},
        {name: name for name in names},
    )


def build_model(size: str, config: TrainConfig) -> nn.Module:
    """A model with random weights; a whole base where the configuration has no adapter."""
    torch.manual_seed(0)
    base = SegVol(SIZES[size])
    if config.adapter is None:
        freeze_text_tower(base)
        return base
    return AdaptedSegVol(base, config.adapter, list(NAMES), [MODALITY])


def build_stream(config: TrainConfig, views: list[CachedView]) -> BatchStream:
    """The batches that a configuration asks for."""
    return BatchStream(
        views, config.batch_size, config.structures_per_image, config.prompts, config.augment, config.seed
    )


def time_steps(model: nn.Module, stream: BatchStream, config: TrainConfig, device: str, steps: int) -> StepSeconds:
    """Make one step to warm up and `steps` more; the fastest batch and the fastest step count."""
    engine = Engine(model, [MODALITY], config, torch.device(device))
    batches, made = [], []
    for step in range(steps + 1):
        batch, seconds = timed(engine.device, lambda at=step: stream.batch(at))  # type: ignore[misc]
        batches.append(seconds)
        made.append(timed(engine.device, lambda of=batch: engine.step([of], 0.5))[1])  # type: ignore[misc]
    return StepSeconds(fastest(batches[1:]), fastest(made[1:]))


def fastest(times: list[Seconds]) -> Seconds:
    """The smallest of each clock."""
    return Seconds(min(t.wall for t in times), min(t.processor for t in times))
