"""Calibration of a support set on itself, each support left out in turn: a logistic regression and a threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS = 6000  # that calibration looks at in one picture, of the structure and of the rest each
RIDGE = 3e-3
FOLDS = 6
THRESHOLDS = torch.linspace(-3, 3, 25)


@dataclass(frozen=True, eq=False)
class Sampled:
    """Pixels of one picture: their places in the flattened map, whether they are the structure's, and how many pixels
    each stands for."""

    places: Tensor
    target: Tensor
    weight: Tensor

    def rows(self, maps: Tensor) -> Tensor:
        """Maps (k, h, w) to rows (n, k), float32."""
        return maps.flatten(1)[:, self.places].mT.float()


def sample_pixels(mask: np.ndarray, rng: np.random.Generator) -> Sampled:
    """Pixels of a boolean mask (h, w), drawn apart inside and outside, so that small structures are seen."""
    places, weights = [], []
    for value in (True, False):
        found = np.flatnonzero(mask == value)
        drawn = rng.permutation(found)[:PIXELS]
        places.append(drawn)
        weights.append(np.full(len(drawn), len(found) / max(len(drawn), 1), np.float32))
    chosen = np.concatenate(places)
    return Sampled(
        torch.from_numpy(chosen),
        torch.from_numpy(mask.ravel()[chosen].astype(np.float32)),
        torch.from_numpy(np.concatenate(weights)),
    )


@dataclass(frozen=True, eq=False)
class Calibration:
    """`weight` (k,) and `bias` make logits of maps (k, h, w); `threshold`: the logit from which on a pixel is the
    structure's; `dice`: that of each picture that both were fitted on, at this threshold, on its sampled pixels."""

    weight: Tensor
    bias: Tensor
    threshold: float
    dice: tuple[float, ...]

    def __call__(self, maps: Tensor) -> Tensor:
        """Logits (h, w)."""
        return torch.einsum("k,khw->hw", self.weight, maps.float()) + self.bias


def calibrate(rows: list[Tensor], sampled: list[Sampled], start: Tensor | None = None) -> Calibration:
    """Fit the regression on the rows (n, k) of all left-out pictures, each picture counting the same; then choose the
    threshold of the best mean Dice.

    A small ridge draws the weights to `start` (k,), to zero by default: what little data leave open stays as it was.
    """
    x, y = torch.cat(rows).double(), torch.cat([s.target for s in sampled]).double()
    weight = torch.cat([s.weight / s.weight.sum() for s in sampled]).double() / len(sampled)
    mean = weight @ x
    scale = (weight @ (x - mean).square()).sqrt().clamp(min=1e-6)
    drawn_to = torch.zeros_like(scale) if start is None else start.double() * scale
    coefficients = _logistic((x - mean) / scale, y, weight, drawn_to)
    slope = coefficients[:-1] / scale
    bias = coefficients[-1] - slope @ mean
    logits = [(part.double() @ slope + bias).float() for part in rows]
    dice = torch.stack([_dice(part, s) for part, s in zip(logits, sampled, strict=True)])
    best = int(dice.mean(0).argmax())
    return Calibration(slope.float(), bias.float(), float(THRESHOLDS[best]), tuple(dice[:, best].tolist()))


def left_out_dice(rows: list[Tensor], sampled: list[Sampled], start: Tensor | None = None) -> float:
    """The mean Dice of pictures, two or more, each found by a regression and a threshold of the others' rows alone;
    `start` as in `calibrate`.

    It tells whether signs of the structure hold beyond the pictures that they were weighed on. At most `FOLDS` pictures
    are left out.
    """
    scores = []
    for index in range(min(len(rows), FOLDS)):
        kept = [other for other in range(len(rows)) if other != index]
        fitted = calibrate([rows[i] for i in kept], [sampled[i] for i in kept], start)
        logits = rows[index] @ fitted.weight + fitted.bias
        found = (logits > fitted.threshold).float() * sampled[index].weight
        truth = sampled[index].weight * sampled[index].target
        scores.append(float(2 * (found @ sampled[index].target) / (found.sum() + truth.sum())))
    return float(np.mean(scores))


def _logistic(x: Tensor, y: Tensor, weight: Tensor, drawn_to: Tensor) -> Tensor:
    """Coefficients (k + 1,), the last one the bias, by Newton's method; the ridge leaves the bias alone."""
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    ridge = torch.full((x.shape[1],), RIDGE, dtype=x.dtype)
    ridge[-1] = 1e-9
    centre = torch.cat([drawn_to, drawn_to.new_zeros(1)])
    coefficients = centre.clone()

    def loss(at: Tensor) -> Tensor:
        errors = F.binary_cross_entropy_with_logits(x @ at, y, reduction="none")
        return weight @ errors + (ridge * (at - centre).square()).sum() / 2

    value = loss(coefficients)
    for _ in range(50):
        chance = torch.sigmoid(x @ coefficients)
        gradient = x.mT @ (weight * (chance - y)) + ridge * (coefficients - centre)
        curvature = x.mT @ ((weight * chance * (1 - chance))[:, None] * x) + torch.diag(ridge)
        step = torch.linalg.solve(curvature, gradient)
        size = 1.0
        while (lower := loss(coefficients - size * step)) > value and size > 1e-4:
            size /= 2
        if not value - lower > 1e-9:
            break
        coefficients, value = coefficients - size * step, lower
    return coefficients


def _dice(logits: Tensor, sampled: Sampled) -> Tensor:
    """Dice at every threshold."""
    found = (logits[None] > THRESHOLDS[:, None]).float() * sampled.weight
    truth = sampled.weight * sampled.target
    return 2 * (found @ sampled.target) / (found.sum(1) + truth.sum())
