"""What a training step costs: the reference's way against an adapter's, with the same weights, image and prompts.

The reference trains all weights in float32 and decodes each structure once for every one of six kinds of prompt; each
loss is taken on logits upsampled to the view. Ours trains LoRA and context priors under bfloat16, one kind of prompt a
step. Each way runs in a process of its own, so that its peak memory is its own.
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from adaptmedseg.bench.inference import SIZES, bench_volume, peak_bytes, plain_attention
from adaptmedseg.bench.process import in_own_process
from adaptmedseg.device import keep_freed_memory
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, LayerAdapterConfig, PriorsConfig
from adaptmedseg.models.prompts import Prompts, text_prompts
from adaptmedseg.models.segvol import SegVol, upsample_logits
from adaptmedseg.training.config import OptimiserConfig
from adaptmedseg.training.losses import segmentation_loss, target_on_map
from adaptmedseg.training.optimisers import build_optimisers
from adaptmedseg.training.run import freeze_text_tower

StepWay = Literal["reference", "ours"]
STRUCTURE, MODALITY = "prostate", "T2 MRI"
KINDS = ("text and points", "text and box", "text", "box", "points", "points and box")
ADAPTER = AdapterConfig(
    layers=[
        LayerAdapterConfig(kind="rslora", rank=8, alpha=8, targets=["image_encoder.*", "mask_decoder.transformer.*"])
    ],
    priors=PriorsConfig(),
)


@dataclass(frozen=True)
class StepResult:
    """Of one way: the fastest step's seconds, peak memory, trained parameters, and the first step's loss on the six
    kinds of prompt, summed, in float32 and before any step."""

    way: StepWay
    seconds: float
    peak_bytes: int
    trained: int
    first_loss: float


def six_prompts(box: Tensor, points: Tensor, labels: Tensor) -> Iterator[Prompts]:
    """The reference's six kinds of prompt for one structure of one image: box (2, 3), points (p, 3), labels (p,)."""
    plain = text_prompts([[STRUCTURE]], [MODALITY])
    for kind in KINDS:
        prompt = replace(plain, use_text="text" in kind)
        if "points" in kind:
            prompt = replace(prompt, points=points[None], labels=labels[None])
        yield replace(prompt, boxes=box[None]) if "box" in kind else prompt


def reference_loss(model: nn.Module, image: Tensor, mask: Tensor, prompts: list[Prompts]) -> Tensor:
    """Dice + BCE of every prompt at the view's size, summed; the image is encoded once, each prompt decoded alone."""
    embedding = model.embed(image, [MODALITY])  # type: ignore[operator]
    losses = [
        segmentation_loss(upsample_logits(model.segment(embedding, prompt), mask.shape[1:]), mask)  # type: ignore[operator]
        for prompt in prompts
    ]
    return torch.stack(losses).sum()


def our_loss(model: nn.Module, image: Tensor, mask: Tensor, prompt: Prompts) -> Tensor:
    """Dice + BCE of one prompt on the decoder's map, under bfloat16."""
    with torch.autocast(image.device.type, torch.bfloat16):
        logits = model(image, prompt)
    return segmentation_loss(logits, target_on_map(mask, logits.shape[1:]))


def measure_step(way: StepWay, size: str, device: str, steps: int = 2) -> StepResult:
    """Time `steps` steps of one way in this process; the fastest counts."""
    keep_freed_memory()
    torch.manual_seed(0)
    base = SegVol(SIZES[size])
    shape = base.config.spatial_size
    lower, upper = (torch.tensor([float(n * part // 4) for n in shape]) for part in (1, 3))
    mask = torch.zeros(1, *shape)
    mask[0][tuple(slice(int(a), int(b) + 1) for a, b in zip(lower, upper, strict=True))] = 1
    points, labels = torch.stack([(lower + upper) / 2, lower / 2]), torch.tensor([1, 0])
    model: nn.Module = base if way == "reference" else AdaptedSegVol(base, ADAPTER, [STRUCTURE], [MODALITY])
    freeze_text_tower(model)
    model.to(device).train()
    image = torch.from_numpy(bench_volume(shape))[None, None].to(device)
    mask = mask.to(device)
    prompts = [prompt.to(torch.device(device)) for prompt in six_prompts(torch.stack([lower, upper]), points, labels)]
    with torch.no_grad(), plain_attention() if way == "reference" else nullcontext():
        first_loss = float(reference_loss(model, image, mask, prompts))
    matrices: Literal["adamw", "muon"] = "adamw" if way == "reference" else "muon"
    optimisers = build_optimisers(model, OptimiserConfig(lr=1e-4, matrices=matrices))
    seconds = []
    for step in range(steps):
        started = time.perf_counter()
        if way == "reference":
            with plain_attention():
                reference_loss(model, image, mask, prompts).backward()
        else:
            our_loss(model, image, mask, prompts[step % len(prompts)]).backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return StepResult(way, min(seconds), peak_bytes(device), trained, first_loss)


def compare_steps(size: str, device: str) -> tuple[StepResult, StepResult]:
    """The reference's way and ours, one after the other."""
    ways: tuple[StepWay, StepWay] = ("reference", "ours")
    reference, ours = (in_own_process(way, measure_step, way, size, device) for way in ways)
    return reference, ours
