"""From evidence to an estimate of Dice: a logistic curve, fitted on cases with truth and kept beside the model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from adaptmedseg.data.files import write_atomic
from adaptmedseg.errors import UserError
from adaptmedseg.inference.confidence import Evidence

FORMAT = "adaptmedseg confidence"
FEWEST = 4


@dataclass(frozen=True)
class Calibration:
    """Dice = 1 / (1 + exp(-(slope · score + intercept))), rising with the score, for the model of these hashes.

    `cases` is how many scores it was fitted on.
    """

    slope: float
    intercept: float
    cases: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict)

    def estimate(self, evidence: Evidence) -> float:
        """Expected Dice in 0..1; 0 for an empty mask, of which nothing else can be said."""
        if not evidence.agreement and not evidence.sharpness:
            return 0.0
        return float(1 / (1 + math.exp(-np.clip(self.slope * evidence.score + self.intercept, -50, 50))))


def fit_calibration(
    evidence: Sequence[Evidence], dice: Sequence[float], hashes: Mapping[str, str] | None = None
) -> Calibration:
    """The curve with the least squared error of Dice. Raises ValueError for fewer than four masks with something in."""
    pairs = [(e.score, d) for e, d in zip(evidence, dice, strict=True) if e.agreement or e.sharpness]
    if len(pairs) < FEWEST:
        raise ValueError(f"a calibration takes at least {FEWEST} masks with something in them, here are {len(pairs)}")
    scores, truth = np.array(pairs).T

    def error(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip(x[0] * scores + x[1], -50, 50))) - truth

    found = least_squares(error, x0=(1.0, 0.0), bounds=((0.0, -np.inf), (np.inf, np.inf)))
    return Calibration(float(found.x[0]), float(found.x[1]), len(pairs), dict(hashes or {}))


def calibration_path(model: Path) -> Path:
    """Where the calibration of a model's file lies: beside it."""
    return model.with_name(f"{model.stem}.confidence.json")


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write it as JSON, atomically."""
    write_atomic(path, json.dumps({"format": FORMAT, "version": 1, **asdict(calibration)}, indent=1))


def read_calibration(path: Path, hashes: Mapping[str, str]) -> Calibration | None:
    """The calibration beside a model; None where there is none.

    Raises:
        UserError: the file is damaged, or belongs to another model than that of these hashes.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Calibration(
            float(content["slope"]), float(content["intercept"]), int(content["cases"]), dict(content["hashes"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no calibration ({error}); run `adaptmedseg calibrate` again") from None
    if found.hashes != dict(hashes):
        raise UserError(f"{path}: was made for another model; remove it and run `adaptmedseg calibrate` again")
    return found
