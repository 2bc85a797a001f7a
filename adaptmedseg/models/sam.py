"""SAM (Kirillov et al. 2023, arXiv:2304.02643), a promptable segmenter of images: the released sizes and a small one.

Prompt encoder and mask decoder are the modules that SegVol has in three dimensions.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from adaptmedseg.models.prompts import Prompts
from adaptmedseg.modules.mask_decoder import MaskDecoder
from adaptmedseg.modules.prompt_encoder import PromptEncoder
from adaptmedseg.modules.sam_encoder import SamImageEncoder

Size2 = tuple[int, int]
Masks = tuple[int, ...]
SINGLE: Masks = (0,)  # the mask for an unambiguous prompt
ALTERNATIVES: Masks = (1, 2, 3)  # the masks for whole, part and subpart, for a prompt that may mean several things
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class SamConfig(BaseModel):
    """Sizes and conventions of one member of the family; stored with its weights.

    `fit`: an image is scaled until its longest side fits and padded below and to the right ("pad", as in SAM), or
    stretched to the square ("stretch", as in MedSAM and SAM 2). `pixels`: values of 0 to 255 are standardised by the
    colours of ImageNet ("standardised"), or each image is scaled to [0, 1] by its extremes ("min-max", as in MedSAM).
    `alternatives`: whether training reached the masks 1 to 3.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    image_size: int = 1024
    patch_size: int = 16
    embed_dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    window_size: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    prompt_dim: int = 256
    mask_channels: int = 16
    decoder_mlp_dim: int = 2048
    decoder_num_heads: int = 8
    iou_hidden_dim: int = 256
    fit: Literal["pad", "stretch"] = "pad"
    pixels: Literal["standardised", "min-max"] = "standardised"
    alternatives: bool = True


SAM_B = SamConfig()
SAM_L = SamConfig(embed_dim=1024, num_layers=24, num_heads=16, global_blocks=(5, 11, 17, 23))
SAM_H = SamConfig(embed_dim=1280, num_layers=32, num_heads=16, global_blocks=(7, 15, 23, 31))
SAM_SMALL = SamConfig(
    image_size=256,
    patch_size=8,
    embed_dim=192,
    num_layers=8,
    num_heads=3,
    window_size=8,
    global_blocks=(3, 7),
    prompt_dim=128,
    decoder_mlp_dim=512,
    decoder_num_heads=4,
    iou_hidden_dim=64,
    alternatives=False,
)


@dataclass(frozen=True)
class SamOutput:
    """What was asked of n prompts: `logits` (n, m, h', w') of m masks on the decoder's map, a quarter of the input's
    size, and `iou` (n, m), the model's own estimate of each mask's overlap with the truth."""

    logits: Tensor
    iou: Tensor


class Sam(nn.Module):
    """Image encoder, prompt encoder and mask decoder, composed as in the paper's figure 4.

    Images are encoded once and asked as often as one likes: `encode(images)`, then `decode(embedding, prompts)`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: SamConfig):
        super().__init__()
        self.config = config
        c = config
        self.image_encoder = SamImageEncoder(
            c.image_size,
            c.patch_size,
            c.embed_dim,
            c.num_layers,
            c.num_heads,
            c.mlp_ratio,
            c.window_size,
            c.global_blocks,
            c.prompt_dim,
        )
        grid, size = self.image_encoder.grid_size, (c.image_size, c.image_size)
        self.prompt_encoder = PromptEncoder(c.prompt_dim, grid, size, "normalised", c.mask_channels)
        self.mask_decoder = MaskDecoder(
            c.prompt_dim, grid, c.decoder_mlp_dim, c.decoder_num_heads, c.iou_hidden_dim, "channel", text=False
        )
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD)[:, None, None], persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """One image (3, h, w) with values 0 to 255, resized by `config.fit`, to the encoder's input (3, s, s).

        The padding below and to the right is zero after normalisation, as in training.
        """
        image = image.float()
        if self.config.pixels == "min-max":
            low, high = image.amin(), image.amax()
            image = (image - low) / (high - low).clamp(min=1e-8)
        else:
            image = (image - self.pixel_mean) / self.pixel_std
        size = self.config.image_size
        return F.pad(image, (0, size - image.shape[-1], 0, size - image.shape[-2]))

    def encode(self, images: Tensor) -> Tensor:
        """Normalised images (b, 3, s, s) to embeddings (b, c, s / patch, s / patch); depends on the images alone."""
        wanted = (3, self.config.image_size, self.config.image_size)
        if tuple(images.shape[1:]) != wanted:
            raise ValueError(f"images are {tuple(images.shape[1:])}, the encoder's input is {wanted}")
        return self.image_encoder(images)

    def decode(self, embedding: Tensor, prompts: Prompts, masks: Masks = SINGLE) -> SamOutput:
        """Embeddings (b, c, h, w) and n prompts about them, in pixels (h, w) of the input, to the masks asked for.

        Names and modalities of the prompts play no part. Prompts of one image share what depends on it alone.
        """
        encoder, decoder = self.prompt_encoder, self.mask_decoder
        sparse = encoder.sparse_tokens(len(prompts), prompts.points, prompts.labels, prompts.boxes, None)
        image, position = (x.flatten(2).mT for x in (embedding, encoder.grid_position()))
        dense = encoder.dense_prompt(prompts.masks)
        output = decoder(image, prompts.image_index, position, sparse, dense, None)
        logits = [decoder.mask_logits(decoder.mask_weights(output, mask), output.upscaled) for mask in masks]
        return SamOutput(torch.stack(logits, dim=1), decoder.iou(output)[:, list(masks)])

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        """As `encode`; SAM makes no use of the modality."""
        return self.encode(image)

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        """Logits (n, h', w') of the mask for an unambiguous prompt: what training looks at."""
        return self.decode(embedding, prompts).logits[:, 0]
