"""Number formats of inference."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from adaptmedseg.modules.text import ClipTransformer

PRODUCTS = (nn.Linear, nn.ConvTranspose2d, nn.ConvTranspose3d)


@contextmanager
def inference_precision(device: torch.device, bf16: bool) -> Iterator[None]:
    """No gradients; with `bf16`, matrix products in bfloat16, sums of residuals and norms in float32."""
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        yield


def hold_products_in_bf16(model: nn.Module) -> None:
    """Store the weights of matrix products in bfloat16, for a model that will only ever answer in that format.

    Autocast would convert them at every call; the answers are the same, the weights take half the memory. The float32
    weights are gone afterwards: hashes have to be taken before. CLIP's tower stays as it is: it runs once a name, in
    float32.
    """
    spared = {module for tower in model.modules() if isinstance(tower, ClipTransformer) for module in tower.modules()}
    for module in model.modules():
        if isinstance(module, PRODUCTS) and module not in spared:
            for parameter in (module.weight, module.bias):  # an adapter's factors stay: they are scaled before use
                if parameter is not None:
                    parameter.data = parameter.data.to(torch.bfloat16)
                    parameter.requires_grad_(False)


def holds_bf16(model: nn.Module) -> bool:
    """Whether weights of a model are kept in bfloat16."""
    return any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
