"""All tasks of an image in one pass, against one pass a task."""

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptmedseg.bench.inference import SIZES
from adaptmedseg.bench.products import best_of
from adaptmedseg.inference.precision import hold_products_in_bf16, inference_precision
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, PriorsConfig
from adaptmedseg.models.prompts import text_prompts
from adaptmedseg.models.segvol import SegVol

MODALITY = "T2 MRI"


@dataclass(frozen=True)
class PassesResult:
    """Seconds for k tasks of one image: in one pass (image encoded, fused and decoded once for all), and in k passes.

    `difference` is the largest between the logits of the two ways.
    """

    tasks: int
    one_pass: float
    passes: float
    difference: float

    @property
    def ratio(self) -> float:
        """How many times faster the one pass is; k would be the most."""
        return self.passes / self.one_pass


def build_adapted(size: str, tasks: int, device: str, config: PriorsConfig | None = None) -> AdaptedSegVol:
    """Random weights by seed 0, adapted by rank 8 and context priors that are moved away from their start."""
    torch.manual_seed(0)
    names = [f"task {i}" for i in range(tasks)]
    model = AdaptedSegVol(SegVol(SIZES[size]), AdapterConfig(priors=config or PriorsConfig()), names, [MODALITY])
    with torch.no_grad():
        for tensor in model.trained_tensors().values():
            tensor.add_(0.02 * torch.randn_like(tensor))
    return model.eval().to(device)


def measure_passes(size: str, tasks: int, device: str, *, bf16: bool, repeats: int = 3) -> PassesResult:
    """Time a model of a size of `SIZES`; without bf16 everything is float32."""
    model = build_adapted(size, tasks, device)
    if bf16:
        hold_products_in_bf16(model)
    view = torch.rand(1, 1, *model.base.config.spatial_size, device=device)

    def ask(names: list[str]) -> Tensor:
        with inference_precision(torch.device(device), bf16):
            return model(view, text_prompts([names], [MODALITY]).to(torch.device(device))).float()

    def together() -> Tensor:
        return ask(model.tasks)

    def alone() -> Tensor:
        return torch.cat([ask([name]) for name in model.tasks])

    difference = float((together() - alone()).abs().max())
    return PassesResult(tasks, best_of(together, device, repeats), best_of(alone, device, repeats), difference)
