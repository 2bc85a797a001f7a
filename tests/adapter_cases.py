"""Adapted models of every kind on a tiny base, and what their tests ask them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, Kind, LayerAdapterConfig
from adaptmedseg.models.prompts import Prompts, text_prompts
from adaptmedseg.models.segvol import SegVol

TASKS = ["prostate", "liver"]
MR, CT = "T2 MRI", "CT"
EVERYWHERE = ["image_encoder.*", "mask_decoder.*"]
KINDS: tuple[Kind, ...] = ("lora", "rslora", "qv_lora", "loose_lora", "med_sa")
MERGEABLE: tuple[Kind, ...] = ("lora", "rslora", "qv_lora", "loose_lora")
WHOLE = ["mask_decoder.output_upscaling.*", "prompt_encoder.*", "mask_decoder.iou_token.weight"]


def one_kind(kind: Kind, *, train: list[str] | None = None, gate: bool = True) -> AdapterConfig:
    layer = LayerAdapterConfig(kind=kind, rank=3, alpha=2.0, targets=EVERYWHERE)
    return AdapterConfig(layers=[layer], priors=None, train=train or [], gate_by_modality=gate)


WHOLE_ALONE = AdapterConfig(layers=[], priors=None, train=WHOLE)


def adapted(base: SegVol, config: AdapterConfig, *, name: str = "adapter") -> AdaptedSegVol:
    torch.manual_seed(1)
    return AdaptedSegVol(base, config, TASKS, [MR], name).eval()


def perturb(model: AdaptedSegVol, seed: int = 3) -> AdaptedSegVol:
    """Move every trained tensor of every adapter away from its start, zeros included."""
    generator = torch.Generator().manual_seed(seed)
    own = [p for adapter in model.adapters for p in adapter.tensors().values()]
    with torch.no_grad():
        for tensor in {id(p): p for p in [*own, *model.trained_tensors().values()]}.values():
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model


def views(n: int, base: SegVol) -> Tensor:
    return torch.rand(n, 1, *base.config.spatial_size, generator=torch.Generator().manual_seed(2))


def answer(model: nn.Module, base: SegVol, modality: str = MR) -> Tensor:
    """Logits of two structures, by name, points and box, on one image."""
    prompts = text_prompts([TASKS], [modality])
    boxes = torch.tensor([[[1.0, 4, 4], [6, 20, 22]]]).expand(2, -1, -1)
    points = torch.tensor([[[3.0, 9, 9], [2, 5, 5]]]).expand(2, -1, -1)
    labels = torch.tensor([[1, 0]]).expand(2, -1)
    asked = Prompts(prompts.image_index, prompts.structures, [modality], True, points, labels, boxes)
    with torch.inference_mode():
        return model(views(1, base), asked)
