"""Faults of acquisition at five severities, by TorchIO where it has them: the image changes, the anatomy stays.

Each is applied to what the model sees, after normalisation: severity 0 is the clean image to the bit, and every model
gets the same fault relative to its own range of intensities.
"""

import math

import numpy as np
import torchio as tio

from adaptmedseg.evaluation.shifts.scene import Scene, Shift

BIAS_ORDER = 3
GHOSTS = 4
MOTION_MM_PER_DEGREE = 1.0


def _noise(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    return scene.with_image(scene.transformed(tio.Noise(mean=0, std=level, seed=int(rng.integers(2**31)))))


def _bias_field(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    terms = math.comb(BIAS_ORDER + 3, 3)
    coefficients = (level * rng.uniform(-1, 1, terms)).tolist()
    image = scene.transformed(tio.BiasField(coefficients=coefficients, order=BIAS_ORDER))
    # A field has no brightness of its own: the mean stays, as any normalisation would have it.
    return scene.with_image(image * (scene.image.mean() / max(float(image.mean()), 1e-6)))


def _motion(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    turns, moves = (level * rng.uniform(-1, 1, (2, 3)) for _ in range(2))
    moves = moves * MOTION_MM_PER_DEGREE
    motion = tio.Motion(turns, moves, np.array([0.3, 0.6]), "linear")
    return scene.with_image(scene.transformed(motion))


def _ghosting(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    return scene.with_image(scene.transformed(tio.Ghosting(GHOSTS, int(rng.integers(1, 3)), level, None)))


def _spike(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    position = rng.uniform(0.3, 0.45, (1, 3))
    return scene.with_image(scene.transformed(tio.Spike(position, level)))


def _blur(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    return scene.with_image(scene.transformed(tio.Blur((level, level, level))))


def _anisotropy(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    thicker = tio.RandomAnisotropy(axes=(0,), downsampling=(level, level))  # one value to draw from: nothing random
    return scene.with_image(scene.transformed(thicker))


def _gamma(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    log_gamma = level if rng.random() < 0.5 else -level
    return scene.with_image(scene.image ** np.float32(math.exp(log_gamma)))


def _contrast(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    """Distances from the foreground's mean times `level`; air, which is 0, stays."""
    foreground = scene.image > 0
    mean = float(scene.image[foreground].mean()) if foreground.any() else 0.0
    return scene.with_image(np.where(foreground, mean + level * (scene.image - mean), 0))


CORRUPTIONS = (
    Shift("noise", "corruption", (0.02, 0.05, 0.1, 0.15, 0.2), "standard deviation", _noise),
    Shift("bias field", "corruption", (0.2, 0.4, 0.6, 0.8, 1.0), "largest coefficient", _bias_field),
    Shift("motion", "corruption", (2, 4, 6, 8, 12), "degrees and mm", _motion),
    Shift("ghosting", "corruption", (0.2, 0.4, 0.6, 0.8, 1.0), "intensity", _ghosting),
    Shift("spike", "corruption", (0.2, 0.4, 0.8, 1.2, 2.0), "intensity", _spike),
    Shift("blur", "corruption", (0.5, 1.0, 1.5, 2.5, 4.0), "standard deviation, mm", _blur),
    Shift("anisotropy", "corruption", (1.5, 2.0, 3.0, 4.0, 6.0), "times thicker slices", _anisotropy),
    Shift("gamma", "corruption", (0.15, 0.3, 0.5, 0.7, 1.0), "logarithm of the exponent, of either sign", _gamma),
    Shift("contrast inversion", "corruption", (0.6, 0.2, -0.2, -0.6, -1.0), "times the contrast", _contrast),
)
