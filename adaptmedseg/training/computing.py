"""Ways of computing a model's blocks: compiled, or twice to save memory. The model is what it was afterwards."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from timm.models.vision_transformer_sam import Block as PictureBlock
from torch import nn
from torch.utils.checkpoint import checkpoint

from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapted_sam import AdaptedSam
from adaptmedseg.modules.two_way import TwoWayAttentionBlock
from adaptmedseg.modules.vit import EncoderBlock

COMPILER = "inductor"


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a model, or, where it has none, the model itself."""
    kinds = (EncoderBlock, TwoWayAttentionBlock, PictureBlock)
    return [m for m in model.modules() if isinstance(m, kinds)] or [model]


@contextmanager
def computed_twice(model: nn.Module) -> Iterator[None]:
    """Within the block a training keeps what enters and leaves the model's blocks, and computes what is inside of them
    again on the way back (Chen et al. 2016, arXiv:1604.06174), with the adapters at work that were at work before."""

    def again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        if not isinstance(model, AdaptedSegVol | AdaptedSam):
            return nullcontext(), nullcontext()
        working = [adapter.name for adapter in model.adapters if adapter.switch.on]
        return nullcontext(), model.adapters.applied(working)

    blocks = blocks_of(model)
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=again)
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Within the block torch.compile computes the model's blocks, each by itself."""
    blocks = blocks_of(model)
    for block in blocks:
        block.compile(backend=COMPILER)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


@contextmanager
def deterministic() -> Iterator[None]:
    """Within the block torch takes algorithms that give the same bits every time, and refuses what has none."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as CUDA's library for matrices asks for
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
