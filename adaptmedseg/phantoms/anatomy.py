"""Implicit shapes in millimetres, from which phantom bodies are put together.

Every shape is a function from points (3, n) in the body frame (x to the patient's right, y anterior, z superior, the
RAS+ axes of nibabel) to an approximate signed distance in mm, positive inside. Shapes know a bounding box, so that a
body is sampled one shape at a time on a small part of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

FloatArray = npt.NDArray[np.float32]
Box = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
Point = tuple[float, float, float]

EXTENT_MM = 400.0
"""Bodies are defined within plus or minus this distance from the origin of their region."""

LABELS: dict[int, str] = {
    1: "peripheral zone",
    2: "transition zone",
    3: "bladder",
    4: "rectum",
    5: "left femoral head",
    6: "right femoral head",
    7: "liver",
    8: "spleen",
    9: "left kidney",
    10: "right kidney",
}


@dataclass(frozen=True)
class Ellipsoid:
    """Superellipsoid: `square` 0 is an ellipsoid, 1 a fourth-power box; `taper` narrows it toward its lower end."""

    centre: Point
    semi: Point
    angles: Point = (0.0, 0.0, 0.0)
    square: float = 0.0
    taper: float = 0.0

    def _matrix(self) -> npt.NDArray[np.float64]:
        return np.asarray(Rotation.from_euler("xyz", self.angles, degrees=True).as_matrix())

    def box(self) -> Box:
        reach = np.minimum(np.abs(self._matrix()) @ (np.asarray(self.semi) * (1 + abs(self.taper))), 2 * EXTENT_MM)
        centre = np.asarray(self.centre)
        return centre - reach, centre + reach

    def distance(self, points: FloatArray) -> FloatArray:
        semi = np.asarray(self.semi)
        to_unit = self._matrix().T / semi[:, None]
        q = to_unit.astype(np.float32) @ points
        q -= (to_unit @ np.asarray(self.centre)).astype(np.float32)[:, None]
        if self.taper:
            q[:2] /= np.clip(1 + self.taper * q[2], 0.5, 2.0)
        squares = q * q
        norm = np.sqrt(squares.sum(0)) + np.float32(1e-4)
        slope = np.sqrt((1 / semi**2).astype(np.float32) @ squares) + np.float32(1e-5)
        level = norm
        if self.square:
            fourth = np.sqrt(np.sqrt((squares * squares).sum(0)))
            level = (1 - np.float32(self.square)) * norm + np.float32(self.square) * fourth
        return np.asarray((1 - level) * norm / slope, dtype=np.float32)


@dataclass(frozen=True)
class Tube:
    """Chain of cones along a polyline of points, with one radius in mm at every point."""

    points: tuple[Point, ...]
    radii: tuple[float, ...]

    def box(self) -> Box:
        points, reach = np.asarray(self.points), max(self.radii)
        return points.min(0) - reach, points.max(0) + reach

    def distance(self, points: FloatArray) -> FloatArray:
        best: FloatArray | None = None
        for start, stop, r0, r1 in zip(self.points, self.points[1:], self.radii, self.radii[1:], strict=False):
            a = np.asarray(start, dtype=np.float32)
            axis = np.asarray(stop, dtype=np.float32) - a
            rel = points - a[:, None]
            t = np.clip((axis @ rel) / max(float(axis @ axis), 1e-6), 0, 1)
            rel -= axis[:, None] * t
            s = np.float32(r0) + np.float32(r1 - r0) * t - np.sqrt((rel * rel).sum(0))
            best = s if best is None else smooth_max(best, s, 4.0)
        if best is None:
            raise ValueError("a tube needs two points or more")
        return np.asarray(best, dtype=np.float32)


@dataclass(frozen=True)
class Blend:
    """Smooth union of shapes, as metaballs melt together over `reach` mm."""

    parts: tuple[Shape, ...]
    reach: float = 8.0

    def box(self) -> Box:
        boxes = [part.box() for part in self.parts]
        low, high = np.min([b[0] for b in boxes], 0), np.max([b[1] for b in boxes], 0)
        return low - self.reach / 4, high + self.reach / 4

    def distance(self, points: FloatArray) -> FloatArray:
        return reduce(lambda a, b: smooth_max(a, b, self.reach), (part.distance(points) for part in self.parts))


@dataclass(frozen=True)
class HalfSpace:
    """All points with normal·point > offset (mm)."""

    normal: Point
    offset: float

    def box(self) -> Box:
        return np.full(3, -2 * EXTENT_MM), np.full(3, 2 * EXTENT_MM)

    def distance(self, points: FloatArray) -> FloatArray:
        return np.asarray(np.asarray(self.normal, dtype=np.float32) @ points - np.float32(self.offset))


@dataclass(frozen=True)
class Slabs:
    """Parallel layers that repeat along z + slope·|x| + tilt·y: vertebral discs, ribs."""

    period: float
    thickness: float
    phase: float
    slope: float = 0.0
    tilt: float = 0.0

    def box(self) -> Box:
        return np.full(3, -2 * EXTENT_MM), np.full(3, 2 * EXTENT_MM)

    def distance(self, points: FloatArray) -> FloatArray:
        height = points[2] + self.slope * np.abs(points[0]) + self.tilt * points[1] - self.phase
        wrapped = height - self.period * np.round(height / self.period)
        return np.asarray(self.thickness / 2 - np.abs(wrapped), dtype=np.float32)


Shape = Ellipsoid | Tube | Blend | HalfSpace | Slabs


def smooth_max(a: FloatArray, b: FloatArray, reach: float) -> FloatArray:
    """Polynomial smooth maximum: differs from max(a, b) only where they are less than `reach` mm apart."""
    overlap = np.maximum(np.float32(reach) - np.abs(a - b), 0)
    return np.asarray(np.maximum(a, b) + overlap * overlap / np.float32(4 * reach), dtype=np.float32)


@dataclass(frozen=True)
class Item:
    """One painted part of a body. Later items cover earlier ones.

    `layers`: (inset in mm, tissue) from the outside in, e.g. a wall and its contents. `label`: value in the label map,
    0 to clear what is covered, None to leave the labels as they are. `within` and `without` clip the shape.
    `only` restricts the item to one family of scanners ("CT" or "MR").
    """

    shape: Shape
    layers: tuple[tuple[float, str], ...]
    label: int | None = 0
    within: tuple[Shape, ...] = ()
    without: tuple[Shape, ...] = ()
    only: str | None = None

    def box(self) -> Box:
        low, high = self.shape.box()
        for shape in self.within:
            other_low, other_high = shape.box()
            low, high = np.maximum(low, other_low), np.minimum(high, other_high)
        return low, high

    def distance(self, points: FloatArray) -> FloatArray:
        s = self.shape.distance(points)
        for shape in self.within:
            s = np.minimum(s, shape.distance(points))
        for shape in self.without:
            s = np.minimum(s, -shape.distance(points))
        return s


@dataclass(frozen=True)
class Warp:
    """Smooth random displacement of the body frame, a sum of spline octaves; `fields` holds (spacing mm, (3,n,n,n))."""

    fields: tuple[tuple[float, FloatArray], ...]
    reach: float = field(default=0.0)

    @staticmethod
    def random(rng: np.random.Generator, octaves: Sequence[tuple[float, float]]) -> Warp:
        """`octaves`: (control spacing in mm, standard deviation of the displacement in mm)."""
        fields = []
        for spacing, sigma in octaves:
            n = int(np.ceil(2 * EXTENT_MM / spacing)) + 1
            controls = np.clip(rng.standard_normal((3, n, n, n), dtype=np.float32), -2, 2) * np.float32(sigma)
            fields.append((spacing, controls))
        return Warp(tuple(fields), 2 * sum(sigma for _, sigma in octaves))

    def displacement(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Displacement (3, ...) in mm at points (3, ...) in mm."""
        total = np.zeros_like(points)
        for spacing, controls in self.fields:
            index = (points + EXTENT_MM) / spacing
            for axis in range(3):
                # controls are B-spline coefficients as they are: prefiltering would only raise the high frequencies
                total[axis] += map_coordinates(controls[axis], index, order=3, prefilter=False, mode="nearest")
        return total


@dataclass(frozen=True)
class Body:
    """A whole phantom: items in painting order, its pose in the world (rotation, translation in mm) and its warp."""

    region: str
    items: tuple[Item, ...]
    rotation: npt.NDArray[np.float64]
    translation: npt.NDArray[np.float64]
    warp: Warp
    centre: Point
    """Point of interest in the body frame, where a field of view is laid (the prostate, the upper abdomen)."""
