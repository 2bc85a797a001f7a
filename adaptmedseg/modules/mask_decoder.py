"""SAM's mask decoder in two or three dimensions, with SegVol's text similarity where a model has text prompts."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptmedseg.modules.folding import rows_of
from adaptmedseg.modules.two_way import TwoWayTransformer
from adaptmedseg.modules.upscaling import OutputUpscaling

NUM_MASK_TOKENS = 4


class MLP(nn.Module):
    """A ReLU MLP of `num_layers` linear layers."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


@dataclass(frozen=True)
class DecoderOutput:
    """What the decoder knows of n prompts.

    After the two-way transformer: `iou_token` (n, c), `mask_tokens` (n, 4, c) and `upscaled` (n, s, p, p, c'), the
    image representation that masks are made from, in the order of `OutputUpscaling`'s cells. `text_weight` (n, c'):
    what a text prompt adds to the weights of every mask; None without one.
    """

    iou_token: Tensor
    mask_tokens: Tensor
    upscaled: Tensor
    text_weight: Tensor | None


def _narrow(x: Tensor) -> Tensor:
    """x in autocast's format, where that is on."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if torch.is_autocast_enabled(x.device.type) else x


class MaskDecoder(nn.Module):
    """Image embedding and prompt tokens to mask logits at four times the resolution of the embedding."""

    def __init__(
        self,
        embed_dim: int,
        grid_size: tuple[int, ...],
        mlp_dim: int,
        num_heads: int,
        iou_hidden_dim: int,
        upscale_norm: Literal["map", "channel"],
        *,
        text: bool = True,
    ):
        super().__init__()
        eighth = embed_dim // 8
        self.transformer = TwoWayTransformer(2, embed_dim, num_heads, mlp_dim)
        self.iou_token = nn.Embedding(1, embed_dim)
        self.mask_tokens = nn.Embedding(NUM_MASK_TOKENS, embed_dim)
        self.output_upscaling = OutputUpscaling(embed_dim, grid_size, upscale_norm)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(embed_dim, embed_dim, eighth, 3) for _ in range(NUM_MASK_TOKENS)
        )
        self.iou_prediction_head = MLP(embed_dim, iou_hidden_dim, NUM_MASK_TOKENS, 3)
        self.txt_align_upscaled_embedding = nn.Linear(embed_dim, eighth) if text else None

    def forward(
        self,
        image: Tensor,
        image_index: Tensor,
        position: Tensor,
        sparse: Tensor,
        dense: Tensor,
        text: Tensor | None,
    ) -> DecoderOutput:
        """n prompts about b images, all as tokens.

        image (b, s, c); image_index (n,): the image of each prompt; position (1, s, c); sparse (n, t, c); dense
        (1, 1, c), the same for all prompts and tokens, or (n, s, c), each prompt's own; text (n, c) or None.
        """
        if len(dense) > 1:  # masks are among the prompts: each has image tokens of its own
            image = rows_of(image, image_index)
            image_index = torch.arange(len(image), device=image.device)
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        # The image's tokens are the wide stream: under autocast it starts in the narrow format, and stays in it where
        # norms keep their input's (on CPUs), which halves what moves through memory; only two blocks add to it.
        queries, keys = self.transformer(_narrow(image + dense), _narrow(position), tokens, image_index)
        mask_tokens = queries[:, 1 : 1 + NUM_MASK_TOKENS]
        text_weight = None if text is None else self._text_weight(text)
        return DecoderOutput(queries[:, 0], mask_tokens, self.output_upscaling(keys), text_weight)

    def _text_weight(self, text: Tensor) -> Tensor:
        if self.txt_align_upscaled_embedding is None:
            raise ValueError("this model takes no text")
        return self.txt_align_upscaled_embedding(text)

    def mask_weights(self, output: DecoderOutput, mask: int = 0) -> Tensor:
        """Weights (n, c') of one of the four masks; 0 is the one for an unambiguous prompt, 1 to 3 are alternatives."""
        weights = self.output_hypernetworks_mlps[mask](output.mask_tokens[:, mask])
        # The reference adds (text · map) to every mask; the sum of the vectors gives the same with one product.
        return weights if output.text_weight is None else weights + output.text_weight

    def iou(self, output: DecoderOutput) -> Tensor:
        """The decoder's own estimate (n, 4) of each mask's overlap with the truth."""
        return self.iou_prediction_head(output.iou_token)

    def mask_logits(self, weights: Tensor, upscaled: Tensor) -> Tensor:
        """One weight vector a prompt (n, c') times the upscaled image (n, s, p, p, c') to logits (n, *map)."""
        # As a product from the right: its gradient has the layout of `upscaled`, which einsum's choice has not.
        cells = (upscaled.flatten(1, 3) @ weights[..., None]).reshape(upscaled.shape[:4])
        return self.output_upscaling.to_map(cells)
