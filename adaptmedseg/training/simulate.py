"""Prompts made from labels, for training: boxes with jitter, random points. Evaluation calls such prompts 'oracle'."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from adaptmedseg.models.prompts import Prompts
from adaptmedseg.training.learning_config import BoxJitterConfig

SMALL, LARGE = 1e-3, 1e-2  # shares of the view's voxels that part small, medium and large structures
DEFAULT_JITTER = BoxJitterConfig()


def box_of(mask: np.ndarray) -> np.ndarray | None:
    """Tight box (2, dims) of a mask (d, h, w) or (h, w): lowest and highest index per axis; None for an empty mask."""
    if not mask.any():
        return None
    axes = range(mask.ndim)
    extents = [np.flatnonzero(mask.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    return np.array([[e[0] for e in extents], [e[-1] for e in extents]], dtype=np.float32)


def jitter_of(mask: np.ndarray, config: BoxJitterConfig) -> float:
    """The range of a mask's box jitter, by the share of the view that it fills."""
    share = np.count_nonzero(mask) / mask.size
    return config.small if share < SMALL else config.medium if share < LARGE else config.large


def simulate_boxes(masks: np.ndarray, rng: np.random.Generator, config: BoxJitterConfig = DEFAULT_JITTER) -> Tensor:
    """Jittered boxes (n, 2, dims) of masks (n, d, h, w) or (n, h, w); an empty mask gets the whole view."""
    size = np.array(masks.shape[1:], dtype=np.float32)
    boxes = []
    for mask in masks:
        box = box_of(mask)
        if box is None:
            box = np.stack([np.zeros_like(size), size - 1])
        most = jitter_of(mask, config)
        jitter = rng.uniform(-most, most, size=box.shape) * (box[1] - box[0] + 1)
        boxes.append(np.clip(box + jitter, 0, size - 1))
    return torch.from_numpy(np.stack(boxes).astype(np.float32))


def points_inside(rng: np.random.Generator, most: int) -> int:
    """How many points, up to `most`, are placed inside of a structure: one number for all prompts of a step."""
    return int(rng.integers(1, most + 1))


def simulate_points(masks: np.ndarray, n_inside: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random points (n, n_inside + 1, dims) and labels of masks (n, d, h, w) or (n, h, w): inside ones first, at least
    one outside."""
    points, labels = [], []
    for mask in masks:
        inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
        k = n_inside if len(inside) else 0
        flat = np.concatenate([rng.choice(inside, k) if k else inside[:0], rng.choice(outside, n_inside + 1 - k)])
        points.append(np.stack(np.unravel_index(flat, mask.shape), axis=-1))
        labels.append([1] * k + [0] * (len(flat) - k))
    return torch.tensor(np.stack(points), dtype=torch.float32), torch.tensor(labels)


def of_kind(prompts: Prompts, kind: str) -> Prompts:
    """What one of `learning_config.KINDS` leaves of prompts that have everything that it takes."""
    found = replace(prompts, use_text="text" in kind)
    if "points" not in kind:
        found = replace(found, points=None, labels=None)
    return found if "box" in kind else replace(found, boxes=None)
