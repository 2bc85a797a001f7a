"""The SegVol family (Du et al. 2023, arXiv:2311.13385): a volumetric promptable segmenter in two sizes."""

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from adaptmedseg.models.prompts import NO_UPDATE, Prompts, TaskUpdate
from adaptmedseg.modules.mask_decoder import DecoderOutput, MaskDecoder
from adaptmedseg.modules.prompt_encoder import PromptEncoder
from adaptmedseg.modules.text import ClipTextEncoder, HashedTextEncoder
from adaptmedseg.modules.vit import ImageEncoderViT

Size3 = tuple[int, int, int]
DECODED_AT_ONCE = 4


class ClipConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["clip"] = "clip"
    width: int = 512
    mlp_dim: int = 2048
    num_layers: int = 12
    num_heads: int = 8


class HashedTextConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["hashed"] = "hashed"
    width: int = 64


class SegVolConfig(BaseModel):
    """Sizes and conventions of one member of the family; stored with its weights.

    `prompt_frame` and `upscale_norm` are "segvol" and "map" in the released weights (see their modules for the quirks)
    and "normalised" and "channel", as in SAM, in the small model. `resize` is how a view is sampled from a volume.
    `zoom_in` says whether training showed windows at full resolution, so that zooming in makes sense.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    spatial_size: Size3 = (32, 256, 256)
    patch_size: Size3 = (4, 16, 16)
    embed_dim: int = 768
    mlp_dim: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    decoder_mlp_dim: int = 2048
    decoder_num_heads: int = 8
    iou_hidden_dim: int = 256
    prompt_frame: Literal["segvol", "normalised"] = "segvol"
    upscale_norm: Literal["map", "channel"] = "map"
    resize: Literal["nearest-exact", "smooth"] = "nearest-exact"
    zoom_in: bool = False
    text: ClipConfig | HashedTextConfig = ClipConfig()


RELEASED = SegVolConfig(zoom_in=True)
SMALL = SegVolConfig(
    spatial_size=(32, 128, 128),
    patch_size=(8, 8, 8),
    embed_dim=192,
    mlp_dim=576,
    num_layers=6,
    num_heads=3,
    decoder_mlp_dim=384,
    decoder_num_heads=6,
    iou_hidden_dim=64,
    prompt_frame="normalised",
    upscale_norm="channel",
    resize="smooth",
    text=HashedTextConfig(),
)


def build_text_encoder(config: SegVolConfig) -> ClipTextEncoder | HashedTextEncoder:
    text = config.text
    if isinstance(text, HashedTextConfig):
        return HashedTextEncoder(text.width, config.embed_dim)
    return ClipTextEncoder(text.width, text.mlp_dim, text.num_layers, text.num_heads, config.embed_dim)


class SegVol(nn.Module):
    """Image encoder, prompt encoder, mask decoder and text path, composed as in the paper's figure 2."""

    def __init__(self, config: SegVolConfig):
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoderViT(
            config.spatial_size,
            config.patch_size,
            config.embed_dim,
            config.mlp_dim,
            config.num_layers,
            config.num_heads,
        )
        grid = self.image_encoder.grid_size
        self.prompt_encoder = PromptEncoder(config.embed_dim, grid, config.spatial_size, config.prompt_frame)
        self.mask_decoder = MaskDecoder(
            config.embed_dim,
            grid,
            config.decoder_mlp_dim,
            config.decoder_num_heads,
            config.iou_hidden_dim,
            config.upscale_norm,
        )
        self.text_encoder = build_text_encoder(config)

    def encode_image(self, image: Tensor) -> Tensor:
        """Views (b, 1, d, h, w) in [0, 1] to embeddings (b, c, d', h', w'); depends on the image alone."""
        return self.image_encoder(image)

    def encode_names(self, names: list[str]) -> Tensor:
        """n names to (n, c), each distinct name encoded once."""
        distinct = sorted(set(names))
        return self.text_encoder(distinct)[[distinct.index(name) for name in names]]

    def decode(self, embedding: Tensor, prompts: Prompts, update: TaskUpdate = NO_UPDATE) -> DecoderOutput:
        """Embeddings (b, c, d', h', w') and n prompts about them to the decoder's output, one row a prompt."""
        text = self.encode_names(prompts.structures) if prompts.use_text else None
        if text is not None and update.names is not None:
            text = text + update.names
        encoder = self.prompt_encoder
        sparse = encoder.sparse_tokens(len(prompts), prompts.points, prompts.labels, prompts.boxes, text)
        image, position = (x.flatten(2).mT for x in (embedding, encoder.grid_position()))
        output = self.mask_decoder(
            image, prompts.image_index, position, sparse, encoder.dense_prompt(prompts.masks), text
        )
        if update.mask_tokens is None:
            return output
        return replace(output, mask_tokens=output.mask_tokens + update.mask_tokens)

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        """As `encode_image`; the base model makes no use of the modality."""
        return self.encode_image(image)

    def segment(self, embedding: Tensor, prompts: Prompts, update: TaskUpdate = NO_UPDATE) -> Tensor:
        """Image embeddings (b, c, d', h', w') and n prompts to mask logits (n, d'', h'', w'') on the decoder's map.

        `update` is what an adapted model adds on the way. Without gradients a few prompts are decoded at a time: the
        upscaled image is the widest map of the model, and every prompt has its own.
        """
        if torch.is_grad_enabled() or len(prompts) <= DECODED_AT_ONCE:
            return self._masks(embedding, prompts, update)
        parts = [(start, start + DECODED_AT_ONCE) for start in range(0, len(prompts), DECODED_AT_ONCE)]
        return torch.cat([self._masks(embedding, prompts.part(*part), update.part(*part)) for part in parts])

    def _masks(self, embedding: Tensor, prompts: Prompts, update: TaskUpdate) -> Tensor:
        output = self.decode(embedding, prompts, update)
        weights = self.mask_decoder.mask_weights(output)
        if update.weights is not None:
            weights = weights + update.weights
        return self.mask_decoder.mask_logits(weights, output.upscaled)

    def forward(self, image: Tensor, prompts: Prompts) -> Tensor:
        """Views (b, 1, d, h, w) and n prompts to mask logits (n, d'', h'', w'') on the decoder's map."""
        return self.segment(self.embed(image, prompts.modalities), prompts)


def upsample_logits(logits: Tensor, size: torch.Size | Size3) -> Tensor:
    """Logits (n, d, h, w) to another size, trilinear as in the reference."""
    return F.interpolate(logits[:, None], size=tuple(size), mode="trilinear", align_corners=False)[:, 0]
