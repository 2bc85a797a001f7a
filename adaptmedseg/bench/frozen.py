"""Steps of trainings that leave the image encoder alone: on stored embeddings, and with encoding at each step."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from adaptmedseg.bench.inference import SIZES
from adaptmedseg.bench.process import in_own_process
from adaptmedseg.bench.steps import MODALITY, StepSeconds, build_model, build_stream, generated_view, time_steps
from adaptmedseg.device import keep_freed_memory
from adaptmedseg.models.adapter_config import AdapterConfig, PriorsConfig
from adaptmedseg.training.config import AugmentConfig, BudgetConfig, OptimiserConfig, TrainConfig
from adaptmedseg.training.embeddings import embed_views, with_frozen_encoder
from adaptmedseg.training.engine import Engine
from adaptmedseg.training.processes import Processes

TRAINED = {
    "decoder": AdapterConfig(layers=[], priors=None, train=["mask_decoder.*"], gate_by_modality=False),
    "priors": AdapterConfig(layers=[], priors=PriorsConfig(modality_loss=0)),
    "tokens": AdapterConfig(layers=[], priors=None, prompt_tokens=True),
}
DRAWS = 2


@dataclass(frozen=True)
class FrozenResult:
    """Seconds a step, with an image and a structure each, and what was trained."""

    trained: str
    encoding: StepSeconds
    stored: StepSeconds


def frozen_config(trained: str, precision: str, folder: str) -> TrainConfig:
    """One image and one structure a step, the default augmentation, AdamW as in the reference."""
    values = {
        "name": "bench",
        "adapter": TRAINED[trained],
        "budget": BudgetConfig(steps=1),
        "batch_size": 1,
        "structures_per_image": 1,
        "precision": precision,
        "augment": AugmentConfig(bias_field=0.3),
        "optimiser": OptimiserConfig(lr=1e-4, matrices="adamw"),
        "data": {"embeddings": {"folder": folder, "draws": DRAWS}},
    }
    return TrainConfig.model_validate(values)


def measure_way(stored: bool, size: str, trained: str, precision: str, device: str, steps: int) -> StepSeconds:
    """Time one way in this process."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        config = frozen_config(trained, precision, folder)
        model = build_model(SIZES[size], config)
        stream = build_stream(config, [generated_view(SIZES[size], 1)])
        if stored:
            frozen, place = with_frozen_encoder(config, model), torch.device(device)
            stream.embeddings = embed_views(stream.views, config, frozen, place, Processes(), lambda text: None)
            assert len(list(Path(folder).rglob("*.safetensors"))) == DRAWS
        return time_steps(Engine(model, [MODALITY], config, torch.device(device)), stream, steps)


def compare_frozen(size: str, trained: str, precision: str, device: str, steps: int = 3) -> FrozenResult:
    """Both ways, each in a process of its own."""
    encoding, stored = (
        in_own_process(name, measure_way, kept, size, trained, precision, device, steps)
        for name, kept in (("encoding", False), ("stored", True))
    )
    return FrozenResult(trained, encoding, stored)
