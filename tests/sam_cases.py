"""The reference implementation of SAM beside ours, on the same weights, which are filled by rule."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_fill import fill

from adaptmedseg.checkpoints.sam import sam_source
from adaptmedseg.models.sam import Sam, SamConfig

TINY_SAM = SamConfig(
    image_size=64,
    patch_size=8,
    embed_dim=48,
    num_layers=3,
    num_heads=3,
    window_size=3,
    global_blocks=(1,),
    prompt_dim=32,
    decoder_mlp_dim=64,
    decoder_num_heads=4,
    iou_hidden_dim=16,
)


def reference_sam(config: SamConfig) -> Any:
    """The package segment-anything's model of these sizes, filled by rule."""
    pytest.importorskip("segment_anything")
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
    from segment_anything.modeling import Sam as ReferenceSam

    cells = config.image_size // config.patch_size
    encoder = ImageEncoderViT(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.num_layers,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        out_chans=config.prompt_dim,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window_size,
        global_attn_indexes=config.global_blocks,
    )
    size = (config.image_size, config.image_size)
    prompts = PromptEncoder(config.prompt_dim, (cells, cells), size, config.mask_channels)
    decoder = MaskDecoder(
        transformer_dim=config.prompt_dim,
        transformer=TwoWayTransformer(2, config.prompt_dim, config.decoder_num_heads, config.decoder_mlp_dim),
        iou_head_hidden_dim=config.iou_hidden_dim,
    )
    model = ReferenceSam(encoder, prompts, decoder).eval()
    fill(model, "sam/")
    return model


def ours_of(reference: Any, config: SamConfig) -> Sam:
    """Our model with the reference's weights, by way of the translation of checkpoints."""
    given = {"decoder_num_heads": config.decoder_num_heads}
    source = sam_source(Path("sam.pth"), reference.state_dict(), given)
    assert source.config == config
    model = Sam(source.config)
    model.load_state_dict(source.tensors)
    return model.eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with a bright block, uint8 (h, w, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / (3 + c) + c) * np.cos(x / (5 + c)) for c in range(3)]
    image = 110 + 60 * np.stack(waves, axis=-1) + rng.normal(0, 5, (height, width, 3))
    image[height // 4 : height // 2, width // 3 : width // 2] += 70
    return image.clip(0, 255).astype(np.uint8)
