"""What measuring masks costs: ours, which finds surfaces once, against MONAI's functions called one after another."""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)

from adaptmedseg.evaluation.metrics import TOLERANCE_MM, measure
from adaptmedseg.evaluation.surfaces import Spacing

SPACING_MM: Spacing = (2.5, 0.8, 0.8)
T = TypeVar("T")
COMPARED = ("dice", "jaccard", "hd95_mm", "assd_mm", "asd_mm", "nsd")


@dataclass(frozen=True)
class MetricsCost:
    """Seconds of each repeat, by the clock and of the processor, and by how much a measure differs at most."""

    ours: list[float]
    monai: list[float]
    ours_cpu: list[float]
    monai_cpu: list[float]
    differences: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """Median over pairs of how many times as fast ours is by the clock."""
        return float(np.median([b / a for a, b in zip(self.ours, self.monai, strict=True)]))

    @property
    def cpu_ratio(self) -> float:
        """The same of processor time."""
        return float(np.median([b / a for a, b in zip(self.ours_cpu, self.monai_cpu, strict=True)]))


def bumpy_pairs(shape: tuple[int, int, int], structures: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Masks (n, d, h, w) of bumpy ellipsoids of organ size, and the same moved and stretched a little: (prediction,
    truth)."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(n) for n in shape)]

    def ellipsoid(centre: np.ndarray, radii: np.ndarray, waves: np.ndarray) -> np.ndarray:
        z, y, x = ((a - c) / r for a, c, r in zip(axes, centre, radii, strict=True))
        bumps = 0.08 * (np.sin(waves[0] * z + waves[1] * y) + np.sin(waves[2] * x + waves[3] * y))
        return np.asarray(z**2 + y**2 + x**2 < 1 + bumps)

    masks = np.zeros((2, structures, *shape), bool)
    size = np.array(shape)
    for k in range(structures):
        radii = size * rng.uniform(0.06, 0.22, 3)
        centre, waves = rng.uniform(radii, size - radii), rng.uniform(3, 9, 4)
        masks[0, k] = ellipsoid(centre + rng.uniform(-3, 3, 3), radii * rng.uniform(0.9, 1.1, 3), waves[::-1])
        masks[1, k] = ellipsoid(centre, radii, waves)
    return masks[0], masks[1]


def measure_by_monai(prediction: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """What MONAI has functions for, each called for all structures (1, n, d, h, w): values (n,)."""
    given = {"include_background": True, "spacing": SPACING_MM}
    tolerances = [TOLERANCE_MM] * prediction.shape[1]
    return {
        "dice": compute_dice(prediction, truth)[0],
        "jaccard": compute_iou(prediction, truth)[0],
        "hd95_mm": compute_hausdorff_distance(prediction, truth, percentile=95, **given)[0],
        "assd_mm": compute_average_surface_distance(prediction, truth, symmetric=True, **given)[0],
        "asd_mm": compute_average_surface_distance(prediction, truth, **given)[0],
        "nsd": compute_surface_dice(prediction, truth, tolerances, **given)[0],
    }


def measure_by_ours(prediction: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """The same values, with volumes and lesions measured on the way."""
    found = [measure(p, t, SPACING_MM) for p, t in zip(prediction, truth, strict=True)]
    rows = [{"dice": f.overlap.dice, **f.as_dict()} for f in found]
    return {name: np.array([row[name] for row in rows]) for name in COMPARED}


def compare_metrics(
    shape: tuple[int, int, int], structures: int, repeats: int, tell: Callable[[str], None] = lambda text: None
) -> MetricsCost:
    """Both ways in turn, `repeats` times; arrays are made and converted before the clock starts."""
    prediction, truth = bumpy_pairs(shape, structures)
    tensors = [torch.from_numpy(masks[None]).float() for masks in (prediction, truth)]
    seconds: dict[str, list[float]] = {"ours": [], "monai": [], "ours cpu": [], "monai cpu": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for repeat in range(repeats):
            tell(f"pair {repeat + 1} of {repeats}")
            ours, *took = _timed(lambda: measure_by_ours(prediction, truth))
            theirs, *theirs_took = _timed(lambda: measure_by_monai(tensors[0], tensors[1]))
            for name, value in zip(seconds, (took[0], theirs_took[0], took[1], theirs_took[1]), strict=True):
                seconds[name].append(value)
    differences = {name: float(np.abs(ours[name] - theirs[name].numpy()).max()) for name in COMPARED}
    return MetricsCost(seconds["ours"], seconds["monai"], seconds["ours cpu"], seconds["monai cpu"], differences)


def _timed(work: Callable[[], T]) -> tuple[T, float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - clock, time.process_time() - processor
