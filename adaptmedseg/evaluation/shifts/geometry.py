"""Changes of place that move truth and image together: rotation, scale and flips."""

from dataclasses import replace

import numpy as np
import torch
import torchio as tio

from adaptmedseg.evaluation.shifts.scene import Scene, Shift


def _affine(scene: Scene, scale: float, degrees: float) -> Scene:
    """About the middle of the image, in the axial plane; masks take the nearest voxel, what comes in is air."""
    affine = np.diag([*scene.spacing, 1.0])
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.from_numpy(scene.image)[None].clone(), affine=affine))
    names = list(scene.masks)
    for i, name in enumerate(names):
        mask = torch.from_numpy(np.ascontiguousarray(scene.masks[name]).astype(np.uint8))[None]
        subject.add_image(tio.LabelMap(tensor=mask, affine=affine), f"mask{i}")
    moved = tio.Affine((scale,) * 3, (degrees, 0, 0), (0, 0, 0), default_pad_value=0)(subject)
    masks = {name: moved[f"mask{i}"].data[0].numpy().astype(bool) for i, name in enumerate(names)}
    return replace(scene.with_image(moved.image.data[0].numpy()), masks=masks)


def _rotation(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    return _affine(scene, 1.0, level if rng.random() < 0.5 else -level)


def _scale(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    return _affine(scene, level if rng.random() < 0.5 else 1 / level, 0.0)


def _flip(axis: int) -> Shift:
    def apply(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
        masks = {name: np.ascontiguousarray(np.flip(mask, axis)) for name, mask in scene.masks.items()}
        image = np.ascontiguousarray(np.flip(scene.image, axis))
        return replace(scene, image=image, masks=masks, mirrored=scene.mirrored != (axis == 2))

    ends = ("head to foot", "front to back", "left to right")[axis]
    return Shift(f"flip {ends}", "geometry", (1.0,), "", apply)


GEOMETRY = (
    Shift("rotation", "geometry", (5, 10, 15, 20, 30), "degrees, axial", _rotation),
    Shift("scale", "geometry", (1.05, 1.1, 1.2, 1.3, 1.5), "times or a fraction of the size", _scale),
    *(_flip(axis) for axis in range(3)),
)
