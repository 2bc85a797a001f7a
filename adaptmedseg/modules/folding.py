"""Attention between a prompt's few tokens and an image's many, with what is linear done to the few.

q kᵀ = (x W_q + b) kᵀ = x (W_q kᵀ) + b kᵀ: instead of projecting thousands of image tokens, project the prompt's tokens
by the transposed matrix and let them meet the image as it is. The same holds for keys, values and the output. An image
of s tokens then costs s · c · (heads · tokens) for each projection instead of s · c · c', which is a sixth in SegVol.
"""

from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor, nn


@runtime_checkable
class Folds(Protocol):
    """What hangs on a linear layer by a forward hook and can say what it makes of the layer's matrix."""

    def folded(self, matrix: Tensor) -> Tensor | None: ...


def matrix_of(layer: nn.Linear) -> Tensor | None:
    """The matrix (out, in) that a linear layer multiplies by, with what hooks add to it.

    None where that is not known: for layers of another class, and with hooks that do something else. Such a layer has
    to be called.
    """
    matrix: Tensor | None = layer.weight
    if type(layer) is not nn.Linear or layer._forward_pre_hooks:
        return None
    for hook in layer._forward_hooks.values():
        owner = getattr(hook, "__self__", None)
        if matrix is None or not isinstance(owner, Folds):
            return None
        matrix = owner.folded(matrix)
    return matrix


def rows_of(x: Tensor, image_index: Tensor) -> Tensor:
    """x (b, ...), one row an image, to (n, ...), one row a prompt; without a copy where there is one image."""
    return x.expand(len(image_index), *x.shape[1:]) if len(x) == 1 else x[image_index]


def scores_of(few: Tensor, matrix: Tensor, image: Tensor, image_index: Tensor) -> Tensor:
    """few (n, l, t, e) times the image (b, s, c) as projected by `matrix` (l·e, c), over √e: (n, l, t, s)."""
    n, heads, tokens, width = few.shape
    by_head = rearrange(matrix, "(l e) c -> l e c", l=heads)
    folded = torch.einsum("nlte,lec->nltc", few * width**-0.5, by_head.to(few.dtype)).flatten(1, 2)
    if len(image) == 1:  # one product for all prompts
        return (folded.flatten(0, 1) @ image[0].mT).reshape(n, heads, tokens, -1)
    return (folded @ image[image_index].mT).reshape(n, heads, tokens, -1)


def values_of(weights: Tensor, image: Tensor, image_index: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """weights (n, l, t, s), each row of sum 1, times the image (b, s, c) as projected: (n, l, t, e)."""
    n, heads, tokens, _ = weights.shape
    if len(image) == 1:
        seen = (weights.flatten(0, 2) @ image[0]).reshape(n, heads, tokens, -1)
    else:
        seen = (weights.flatten(1, 2) @ image[image_index]).reshape(n, heads, tokens, -1)
    by_head = rearrange(matrix, "(l e) c -> l e c", l=heads)
    return torch.einsum("nltc,lec->nlte", seen, by_head.to(seen.dtype)) + rearrange(bias, "(l e) -> l 1 e", l=heads)


def output_of(weights: Tensor, values: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """weights (n, l, t, s) over the few values (n, l, t, e), projected by `matrix` (c, l·e): (n, s, c)."""
    by_head = rearrange(matrix, "c (l e) -> c l e", l=values.shape[1])
    answers = torch.einsum("nlte,cle->nltc", values, by_head.to(values.dtype)).flatten(1, 2)
    return torch.baddbmm(bias.to(answers.dtype), weights.to(answers.dtype).flatten(1, 2).mT, answers)
