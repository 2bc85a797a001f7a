"""Several prompts of one picture in one batch, against one pass a prompt."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from adaptmedseg.device import wait_for
from adaptmedseg.inference.precision import inference_precision
from adaptmedseg.models.prompts import Prompts
from adaptmedseg.models.sam import SAM_B, SAM_H, SAM_L, SAM_SMALL, Sam

SAM_SIZES = {"small": SAM_SMALL, "b": SAM_B, "l": SAM_L, "h": SAM_H}


@dataclass(frozen=True)
class PromptsResult:
    """Seconds, medians over repeats, for n box prompts of one picture.

    `batch` encodes once and decodes all at once, `passes` does all of it a prompt; `decode_batch` and `decode_passes`
    are the same without the encoder, as with embeddings that were kept. `ratio` and `decode_ratio` are medians over
    repeats of how many times faster the batch is than the passes timed right beside it. `difference` is the largest
    between the logits of the two ways.
    """

    prompts: int
    batch: float
    passes: float
    ratio: float
    decode_batch: float
    decode_passes: float
    decode_ratio: float
    difference: float


def boxes_of(count: int, size: int) -> Prompts:
    """Boxes (n, 2, 2) of one image, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(count, 1, 2, generator=generator) * size / 2
    extent = (0.1 + 0.4 * torch.rand(count, 1, 2, generator=generator)) * size
    names = [f"box {i}" for i in range(count)]
    index = torch.zeros(count, dtype=torch.long)
    return Prompts(index, names, ["picture"], use_text=False, boxes=torch.cat([low, low + extent], dim=1))


def measure_prompts(size: str, count: int, device: str, *, bf16: bool, repeats: int = 3) -> PromptsResult:
    """Time a SAM of a size of `SAM_SIZES` with random weights; without bf16 everything is float32."""
    torch.manual_seed(0)
    config, place = SAM_SIZES[size], torch.device(device)
    model = Sam(config).eval().to(place)
    image = torch.rand(1, 3, config.image_size, config.image_size, device=place)
    prompts = boxes_of(count, config.image_size).to(place)

    def decoded(embedding: Tensor) -> Tensor:
        return model.decode(embedding, prompts).logits

    def one_by_one(embed: Callable[[], Tensor]) -> Tensor:
        return torch.cat([model.decode(embed(), prompts.part(i, i + 1)).logits for i in range(count)])

    def encoded() -> Tensor:
        return model.encode(image)

    with inference_precision(place, bf16):
        kept = encoded()
        decoding = _paired(lambda: decoded(kept), lambda: one_by_one(lambda: kept), place, repeats)
        whole = _paired(lambda: decoded(encoded()), lambda: one_by_one(encoded), place, repeats)
    return PromptsResult(count, *whole[:3], *decoding[:3], max(whole[3], decoding[3]))


def _paired(
    batch: Callable[[], Tensor], passes: Callable[[], Tensor], device: torch.device, repeats: int
) -> tuple[float, float, float, float]:
    """Medians of the seconds of both ways and of their ratio, and the largest difference of what they give; one after
    the other, so that other load on the machine meets both."""
    difference = float((batch().float() - passes().float()).abs().max())
    pairs = [(_seconds(batch, device), _seconds(passes, device)) for _ in range(repeats)]
    ratio = median(slow / fast for fast, slow in pairs)
    return median(fast for fast, _ in pairs), median(slow for _, slow in pairs), ratio, difference


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started
