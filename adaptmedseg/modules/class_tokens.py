"""SAMed's way of asking (Zhang & Liu 2023, arXiv:2304.13785): a mask token a class, all classes in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adaptmedseg.modules.mask_decoder import MLP, MaskDecoder


class ClassTokens(nn.Module):
    """In the place of SAM's four mask tokens a decoder gets one a class, each with its own MLP; no prompt is given.

    All of them start as SAM's token for unambiguous prompts, each moved a little so that classes part.
    """

    def __init__(self, classes: int, decoder: MaskDecoder):
        super().__init__()
        first = decoder.mask_tokens.weight[0].detach()
        width = len(first)
        self.tokens = nn.Embedding(classes, width)
        self.mlps = nn.ModuleList(MLP(width, width, width // 8, 3) for _ in range(classes))
        with torch.no_grad():
            self.tokens.weight.copy_(first + 0.02 * torch.randn(classes, width, device=first.device))
        for mlp in self.mlps:
            mlp.load_state_dict(decoder.output_hypernetworks_mlps[0].state_dict())

    def forward(self, decoder: MaskDecoder, image: Tensor, position: Tensor, dense: Tensor) -> Tensor:
        """Logits (b, k, *map) of k classes on b images, from their tokens (b, s, c), the grid's positions (1, s, c),
        and the default embedding (1, 1, c) that stands for 'no prompt'."""
        tokens = torch.cat([decoder.iou_token.weight, self.tokens.weight]).expand(len(image), -1, -1)
        index = torch.arange(len(image), device=image.device)
        queries, keys = decoder.transformer(image + dense, position, tokens, index)
        upscaled = decoder.output_upscaling(keys)
        weights = [mlp(queries[:, 1 + number]) for number, mlp in enumerate(self.mlps)]
        return torch.stack([decoder.mask_logits(weight, upscaled) for weight in weights], dim=1)
