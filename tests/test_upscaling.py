"""The upscaling on tokens equals the reference's plain Sequential on maps."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from adaptmedseg.modules.upscaling import OutputUpscaling

WIDTH = 16


def plain(layers: OutputUpscaling, image: Tensor) -> Tensor:
    """The same layers one after another on maps (n, c, *grid), the channel norm as in SAM's LayerNorm2d."""
    first, norm, _, second, _ = layers.children()
    assert isinstance(norm, nn.LayerNorm)
    x = first(image)
    if layers.norm == "map":
        x = norm(x)
    else:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        affine = [p.reshape(-1, *[1] * (x.ndim - 2)) for p in (norm.weight, norm.bias)]
        x = (x - mean) / torch.sqrt(variance + norm.eps) * affine[0] + affine[1]
    return F.gelu(second(F.gelu(x)))


@pytest.mark.parametrize("norm", ["map", "channel"])
@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 4)])
def test_equals_the_plain_sequential(grid: tuple[int, ...], norm: Literal["map", "channel"]) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = OutputUpscaling(WIDTH, grid, norm)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    image = torch.randn(2, WIDTH, *grid, generator=generator, requires_grad=True)
    cells = layers(image.flatten(2).mT)
    maps = torch.stack([layers.to_map(cells[..., channel]) for channel in range(WIDTH // 8)], dim=1)
    expected = plain(layers, image)
    assert maps.shape == (2, WIDTH // 8, *[4 * n for n in grid])
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn(expected.shape, generator=generator)
    gradients = [
        torch.autograd.grad((out * direction).sum(), [image, *layers.parameters()]) for out in (maps, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["map", "channel"])
def test_the_map_norm_keeps_the_references_names(norm: Literal["map", "channel"]) -> None:
    layers = OutputUpscaling(WIDTH, (2, 3, 4), norm)
    assert sorted(layers.state_dict()) == ["0.bias", "0.weight", "1.bias", "1.weight", "3.bias", "3.weight"]
    assert layers[1].weight.shape == ((4, 4, 6, 8) if norm == "map" else (4,))


def test_a_plain_sequential_of_the_reference_takes_the_weights() -> None:
    layers = OutputUpscaling(WIDTH, (2, 3, 4), "map")
    reference = nn.Sequential(
        nn.ConvTranspose3d(WIDTH, 4, 2, 2),
        nn.LayerNorm((4, 4, 6, 8)),
        nn.GELU(),
        nn.ConvTranspose3d(4, 2, 2, 2),
        nn.GELU(),
    )
    reference.load_state_dict(layers.state_dict())
    image = torch.randn(1, WIDTH, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    cells = layers(image.flatten(2).mT)
    found = rearrange(cells, "n (d h w) (a b e) (i j k) c -> n c (d a i) (h b j) (w e k)", d=2, h=3, a=2, b=2, i=2, j=2)
    torch.testing.assert_close(found, reference(image), atol=1e-5, rtol=1e-5)
