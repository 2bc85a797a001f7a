"""From prompts on a picture's pixels to prompts for a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adaptmedseg.errors import UserError
from adaptmedseg.inference.prompt_file import PromptSet, StructurePrompts
from adaptmedseg.models.prompts import StructurePrompt

_ROUNDING = 1e-4


def to_pixel_prompts(
    prompts: PromptSet, shape: tuple[int, int], image: str, classes: Sequence[str] = ()
) -> list[StructurePrompt]:
    """Prompts in pixels (x, y) of the picture to (h, w); pixel centres are at integers.

    Raises UserError for prompts in millimetres, of three coordinates, outside of the picture, or of names alone but for
    the model's own `classes`.
    """
    if prompts.space != "voxel" and prompts.located:
        raise UserError(f"{prompts.source}: a picture has no millimetres; give pixels and the space 'voxel'")
    return [_placed(prompts, index, shape, image, classes) for index in range(len(prompts.prompts))]


def _placed(
    prompts: PromptSet, index: int, shape: tuple[int, int], image: str, classes: Sequence[str]
) -> StructurePrompt:
    entry, place = prompts.prompts[index], prompts.place(index)
    if entry.task:
        raise UserError(f"{place}: task is true, but models of pictures have no task tokens; leave task out")
    if not entry.points and entry.box is None:
        if entry.structure in classes:
            return StructurePrompt(entry.structure, text=False)
        if classes:
            raise UserError(f"{place}: is no class of this model, which has {', '.join(classes)}; ask for these")
        raise UserError(f"{place}: a model of pictures is asked by points or a box, not by a name; add one of them")
    points = [_pixel(prompts, index, f"points[{i}]", p.position, shape, image) for i, p in enumerate(entry.points)]
    labels = [int(point.label == "positive") for point in entry.points]
    return StructurePrompt(
        entry.structure,
        text=False,
        points=torch.tensor(points) if points else None,
        labels=torch.tensor(labels) if points else None,
        box=_box(prompts, index, entry, shape, image),
    )


def _box(
    prompts: PromptSet, index: int, entry: StructurePrompts, shape: tuple[int, int], image: str
) -> torch.Tensor | None:
    """Lower and upper corner (2, 2), cut to the centres of the picture's outermost pixels."""
    if entry.box is None:
        return None
    given = [_pixel(prompts, index, f"box.{end}", getattr(entry.box, end), shape, image) for end in ("min", "max")]
    corners = torch.tensor(given).sort(dim=0).values
    return corners.clamp(torch.zeros(2), torch.tensor(shape) - 1.0)


def _pixel(
    prompts: PromptSet, index: int, part: str, numbers: list[float], shape: tuple[int, int], image: str
) -> tuple[float, float]:
    """(x, y) to (h, w)."""
    place = f"{prompts.place(index)}: {part}"
    if len(numbers) != 2:
        raise UserError(f"{place} has {len(numbers)} numbers, but {image} has two axes; give x and y")
    x, y = numbers
    h, w = shape
    if not (-0.5 - _ROUNDING <= x <= w - 0.5 + _ROUNDING and -0.5 - _ROUNDING <= y <= h - 0.5 + _ROUNDING):
        raise UserError(
            f"{place} at {[round(n, 1) for n in numbers]} lies outside the image {image} "
            f"(x -0.5 to {w - 0.5}, y -0.5 to {h - 0.5}, pixels); check the order of x and y"
        )
    return y, x
