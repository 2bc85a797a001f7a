"""Med-SA's bottleneck adapters (Wu et al. 2023, arXiv:2304.12620) in encoder and decoder blocks."""

import torch.nn.functional as F
from timm.models.vision_transformer_sam import Block as SamBlock
from torch import Tensor, nn

from adaptmedseg.adapters.bypass import Bypass, Switch
from adaptmedseg.modules.two_way import TwoWayAttentionBlock
from adaptmedseg.modules.vit import EncoderBlock


class Bottleneck(Bypass):
    """y + s · up(gelu(down(x))): x is the host's input and y its output; `up` is zero at the start."""

    def __init__(self, switch: Switch, like: Tensor, width: int, rank: int, scale: float):
        super().__init__(switch)
        self.scale = scale
        self.down = nn.Linear(width, rank, device=like.device)
        self.up = nn.Linear(rank, width, device=like.device)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        return output + self.scale * self.switch.scale * self.up(F.gelu(self.down(x)))


class BottleneckAfter(Bottleneck):
    """y + s · up(gelu(down(y))): behind the host, with a residual."""

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        return super().forward(output, output)


class BottleneckBefore(Bottleneck):
    """The same on the host's input, before the host sees it."""

    def attach(self, host: nn.Module) -> None:
        host.register_forward_pre_hook(self._before)

    def _before(self, host: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (self(inputs[0], inputs[0]), *inputs[1:]) if self.switch.on else None


# Where the paper puts adapters in a block: behind the attention and in parallel to the MLP; in a decoder's block behind
# the attention of prompts to the image, in parallel to the MLP, and where the image's tokens have taken up the prompts,
# before the norm. Only those beside the MLP are scaled (the paper's 0.5 is alpha = rank / 2).
SITES: dict[type[nn.Module], dict[str, type[Bottleneck]]] = {
    EncoderBlock: {"attn": BottleneckAfter, "mlp": Bottleneck},
    SamBlock: {"attn": BottleneckAfter, "mlp": Bottleneck},
    TwoWayAttentionBlock: {
        "cross_attn_token_to_image.out_proj": BottleneckAfter,
        "mlp": Bottleneck,
        "norm4": BottleneckBefore,
    },
}


def bottlenecks(switch: Switch, block: nn.Module, rank: int, alpha: float) -> dict[str, Bottleneck]:
    """The adapters of one block by the part of it that they belong to."""
    first = next(block.parameters())
    width = next(module.normalized_shape[0] for module in block.modules() if isinstance(module, nn.LayerNorm))
    return {
        site: kind(switch, first, width, rank, alpha / rank if kind is Bottleneck else 1.0)
        for site, kind in SITES[type(block)].items()
    }
