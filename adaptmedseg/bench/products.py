"""How close an encoder comes to what this machine's matrix products can do."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptmedseg.device import wait_for
from adaptmedseg.inference.precision import inference_precision
from adaptmedseg.models.segvol import SegVol


@dataclass(frozen=True)
class EncoderShare:
    """FLOP/s of the image encoder in bf16 and of bare bf16 products.

    `wide`: one product of the encoder's widest shape. `alike`: all the products of the encoder (attention's included)
    one after another with nothing between them, as floating-point operations of all over the time of all.
    """

    encoder: float
    wide: float
    alike: float
    seconds: float


def best_of(run: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Seconds of the fastest of several runs, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        wait_for(torch.device(device))
        started = time.perf_counter()
        run()
        wait_for(torch.device(device))
        times.append(time.perf_counter() - started)
    return min(times)


@torch.inference_mode()
def encoder_share(model: SegVol, device: str) -> EncoderShare:
    """Time the encoder of a model whose products are held in bf16 on one view, and bare products of its shapes."""
    config = model.config
    tokens = model.image_encoder.patch_embedding.position_embeddings.shape[1]
    width, hidden, heads, depth = config.embed_dim, config.mlp_dim, config.num_heads, config.num_layers
    patch = torch.tensor(config.patch_size).prod().item()

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).bfloat16()

    def linear(into: int, out: int) -> tuple[float, float]:
        x, weight = random(tokens, into), random(out, into)
        return 2.0 * tokens * into * out, best_of(lambda: torch.nn.functional.linear(x, weight), device)

    q, k, v = random(heads, tokens, width // heads), random(heads, width // heads, tokens), random(heads, tokens, 64)
    scores = random(heads, tokens, tokens)
    attention = 2.0 * tokens * tokens * width
    a_block = [
        linear(width, 3 * width),
        linear(width, width),
        linear(width, hidden),
        linear(hidden, width),
        (attention, best_of(lambda: q @ k, device)),
        (attention, best_of(lambda: scores @ v, device)),
    ]
    flops = depth * sum(f for f, _ in a_block) + 2.0 * tokens * int(patch) * width
    bare = depth * sum(s for _, s in a_block)
    image = torch.rand(1, 1, *config.spatial_size, device=device)
    with inference_precision(torch.device(device), True):
        seconds = best_of(lambda: model.encode_image(image), device)
    wide = max(f / s for f, s in a_block[:4])
    return EncoderShare(flops / seconds, wide, flops / bare, seconds)
