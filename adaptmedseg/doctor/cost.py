"""What a configuration costs on this machine: a few real steps on made-up views, and the memory of the largest case."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from adaptmedseg.data.headers import VolumeSize
from adaptmedseg.inference.loading import load_model
from adaptmedseg.inference.machine import Bytes, PeakMemory
from adaptmedseg.inference.memory import Job, Step, estimate, footprint
from adaptmedseg.inference.settings import InferenceSettings
from adaptmedseg.training.config import BudgetConfig, DataConfig, TrainConfig
from adaptmedseg.training.run import build_model, build_stream, freeze_text_tower, input_view
from adaptmedseg.training.start import load_start
from adaptmedseg.training.trainer import Trainer
from adaptmedseg.training.training_set import TrainingSet
from adaptmedseg.training.views import CachedView

TRIED_STEPS = 3
_READ_BYTES = 8  # a voxel of a volume, as stored at the widest


@dataclass(frozen=True)
class Cost:
    """Measured seconds a training step and MiB of main memory at the peak (of the device, where there is one), the
    steps that the budget holds, and the estimated bytes of predicting the largest case."""

    seconds: float
    peak_mib: dict[str, float | str]
    steps: int
    looks_a_case: float
    predict_bytes: Bytes

    def sentences(self, config: str) -> list[str]:
        """The figures in words."""
        memory = ", ".join(f"{where} {value} MiB" for where, value in self.peak_mib.items() if where != "counted")
        return [
            f"A training step of '{config}' takes {self.seconds:.2f} s here; its budget holds about {self.steps} steps,"
            f" which look at every case {self.looks_a_case:.0f} times.",
            f"Training took at its peak: {memory}. Predicting the largest case takes about "
            f"{self.predict_bytes / 2**30:.1f} GiB.",
        ]


def measure_cost(
    config: TrainConfig,
    structures: list[str],
    modality: str,
    cases: int,
    largest: tuple[int, int, int],
    device: torch.device,
) -> Cost:
    """Try a configuration on views of noise.

    Args:
        config: as read; its data are not touched.
        structures: to be learnt.
        modality: of the images.
        cases: how many cases there are to learn from.
        largest: voxels (d, h, w) of the largest volume.
        device: where to train.
    """
    start = load_start(config)
    size, _ = input_view(config, start.base)
    view = _noise_view(size, structures, modality)
    data = TrainingSet([view], structures, [modality], [], [], (1.0, 1.0, 1.0), {})
    model = build_model(config, start, data)
    freeze_text_tower(model)
    tried = config.model_copy(update={"budget": BudgetConfig(steps=TRIED_STEPS)})
    stream = build_stream(config.model_copy(update={"data": DataConfig()}), data)
    peak = PeakMemory(device)
    result = Trainer(model, stream, tried, device).run()
    seconds = result.minutes * 60 / TRIED_STEPS
    steps = config.budget.steps or math.floor((config.budget.minutes or 0) * 60 / max(seconds, 1e-6))
    volume = VolumeSize(largest, _READ_BYTES * math.prod(largest))
    loaded = load_model(start.base_name or "small")
    job = Job(volume, len(structures), loaded.zoom_in or bool(config.data.zoom_in))
    need = estimate(footprint(loaded), loaded.size, job, Step(device, InferenceSettings()), device)
    return Cost(seconds, peak.read(), steps, steps * config.batch_size / max(cases, 1), need.host)


def _noise_view(size: tuple[int, int, int], structures: list[str], modality: str) -> CachedView:
    """Noise in which every structure is the same box."""
    image = torch.from_numpy(np.random.default_rng(0).random(size, np.float32)).half()
    labels = np.zeros(size, np.uint64)
    labels[tuple(slice(n // 4, n // 2) for n in size)] = (1 << len(structures)) - 1
    bits = {name: bit for bit, name in enumerate(structures)}
    return CachedView(modality, image, labels, bits, {name: name for name in structures})
