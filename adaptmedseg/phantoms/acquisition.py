"""Sampling a phantom body on an oriented voxel grid, and the artefacts of CT and MR scanners."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from .anatomy import Body, FloatArray, Item
from .tissues import Contrast

Shape3 = tuple[int, int, int]


def upsample(coarse: FloatArray, shape: Shape3) -> FloatArray:
    """Linear interpolation of the last three axes to `shape`, corner samples kept, as three matrix products."""
    out = coarse
    for axis, size in enumerate(shape, start=coarse.ndim - 3):
        n = coarse.shape[axis]
        position = np.linspace(0, n - 1, size)
        low = np.minimum(position.astype(int), max(n - 2, 0))
        weights = np.zeros((size, n), dtype=np.float32)
        weights[np.arange(size), low] = 1 - (position - low)
        if n > 1:
            weights[np.arange(size), low + 1] += (position - low).astype(np.float32)
        out = np.moveaxis(np.tensordot(weights, out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out, dtype=np.float32)


def smooth_noise(rng: np.random.Generator, shape: Shape3, scale: tuple[float, float, float]) -> FloatArray:
    """Random field of about zero mean and unit deviation with features of `scale` voxels."""
    coarse = (max(2, int(shape[0] / scale[0])), max(2, int(shape[1] / scale[1])), max(2, int(shape[2] / scale[2])))
    # linear interpolation lowers the deviation of white noise to about a half in three dimensions
    return upsample(rng.standard_normal(coarse, dtype=np.float32) * np.float32(1.8), shape)


@dataclass(frozen=True)
class Sampler:
    """Points of a (z, y, x) grid in the frame of a body, warped, and the inverse map for bounding boxes."""

    points: FloatArray
    to_index: npt.NDArray[np.float64]
    spacing: tuple[float, float, float]
    reach: float

    @staticmethod
    def lay(body: Body, affine: npt.NDArray[np.float64], shape: Shape3) -> Sampler:
        """`affine`: voxel (x, y, z) to RAS mm; `shape`: (nz, ny, nx)."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = body.rotation, body.translation
        to_body = np.linalg.inv(pose) @ affine
        steps = (2.0, 7.0, 7.0)
        coarse = [np.linspace(0, n - 1, max(3, int(n / step))) for n, step in zip(shape, steps, strict=True)]
        z, y, x = np.meshgrid(*coarse, indexing="ij")
        points = np.tensordot(to_body[:3, :3], np.stack((x, y, z)), axes=1) + to_body[:3, 3][:, None, None, None]
        warped = (points + body.warp.displacement(points)).astype(np.float32)
        sx, sy, sz = (float(v) for v in np.linalg.norm(affine[:3, :3], axis=0))
        return Sampler(
            upsample(warped, shape), np.asarray(np.linalg.inv(to_body), dtype=np.float64), (sz, sy, sx), body.warp.reach
        )

    def window(self, item: Item) -> tuple[slice, slice, slice] | None:
        """Slices (z, y, x) of the grid that can hold the item, None where it is outside."""
        low, high = item.box()
        margin = self.reach + 2 * max(self.spacing)
        corners = np.stack(np.meshgrid(*zip(low - margin, high + margin, strict=True), indexing="ij")).reshape(3, -1)
        index = self.to_index[:3, :3] @ corners + self.to_index[:3, 3][:, None]
        start = np.clip(np.floor(index.min(1)), 0, None).astype(int)[::-1]
        stop = np.minimum(np.ceil(index.max(1)).astype(int)[::-1] + 1, self.points.shape[1:])
        if np.any(stop <= start):
            return None
        z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        return z, y, x


def paint(
    body: Body, sampler: Sampler, contrast: Contrast, textures: tuple[FloatArray, FloatArray], family: str
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Noise-free image and label map (z, y, x). Surfaces are blended over about one voxel (partial volume)."""
    shape = sampler.points.shape[1:]
    image = np.full(shape, contrast.values["air"], dtype=np.float32)
    labels = np.zeros(shape, dtype=np.uint8)
    width = np.float32(0.6 * (sampler.spacing[1] + sampler.spacing[2]))
    for number, item in enumerate(body.items):
        window = sampler.window(item)
        if window is None or (item.only is not None and item.only != family):
            continue
        points = sampler.points[(slice(None), *window)]
        block = points.shape[1:]
        s = item.distance(points.reshape(3, -1)).reshape(block)
        if s.max() < -width:
            continue
        view = image[window]
        # the same noise serves all tissues; the sign and choice keep neighbours from sharing their texture
        texture = textures[number % 2][window]
        for inset, tissue in item.layers:
            alpha = np.clip((s - np.float32(inset)) / width + np.float32(0.5), 0, 1)
            target = np.float32(contrast.texture[tissue] * (1 if number % 4 < 2 else -1)) * texture
            target += np.float32(contrast.values[tissue])
            target -= view
            target *= alpha
            view += target
        if item.label is not None:
            labels[window][s > 0] = item.label
    return image, labels


def ct_artefacts(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Blur, beam hardening between bones, shading, and noise correlated as in filtered back-projection; clipped HU."""
    sharp = float(rng.uniform(0.35, 0.65))
    out = gaussian_filter(image, (0.35, sharp, sharp), truncate=3.0)
    coarse = np.clip(out[:, ::4, ::4] - 250, 0, 700)
    streak = gaussian_filter1d(gaussian_filter1d(coarse, 14, axis=2), 1.2, axis=1)
    streak = upsample(streak, (out.shape[0], out.shape[1], out.shape[2]))
    out -= streak * np.float32(rng.uniform(0.02, 0.1))
    out += np.float32(rng.uniform(1, 4)) * smooth_noise(rng, out.shape, (20, 50, 50))
    white = rng.standard_normal(out.shape, dtype=np.float32)
    white -= gaussian_filter1d(gaussian_filter1d(white, 2.0, axis=1, truncate=2), 2.0, axis=2, truncate=2)
    grain = gaussian_filter(white, (0.0, 0.7, 0.7), truncate=2.5)
    grain *= np.float32(rng.uniform(8, 22) / max(float(grain[:, ::4, ::4].std()), 1e-6))
    out += grain
    return np.asarray(np.clip(out, -1024, 3071), dtype=np.float32)


def bias_field(rng: np.random.Generator, shape: Shape3) -> FloatArray:
    """Multiplicative coil sensitivity: TorchIO's polynomial bias field, computed on a coarse grid."""
    # imported here because it takes seconds, which CT phantoms need not pay
    import torch
    from torchio import BiasField, ScalarImage

    coefficients = rng.uniform(-0.2, 0.2, 20).tolist()
    field = BiasField(coefficients, order=3)(ScalarImage(tensor=torch.ones(1, 8, 16, 16)))
    values: FloatArray = field.data.numpy()[0]
    return upsample(values / values.mean(), shape)


def mr_artefacts(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Blur of the sampled k-space, bias field, Rician noise (magnitude of complex noise) and an arbitrary scale."""
    blur = float(rng.uniform(0.3, 0.6))
    out = gaussian_filter(np.clip(image, 0, None), (0.3, blur, blur), truncate=3.0)
    out *= bias_field(rng, out.shape)
    level = np.float32(np.percentile(out[:, ::3, ::3], 95) * rng.uniform(0.015, 0.05))
    real = out + level * rng.standard_normal(out.shape, dtype=np.float32)
    imaginary = level * rng.standard_normal(out.shape, dtype=np.float32)
    out = np.sqrt(real * real + imaginary * imaginary)
    peak = float(np.exp(rng.uniform(np.log(250), np.log(3000))))
    return np.asarray(np.clip(out * np.float32(peak / np.percentile(out[:, ::3, ::3], 99)), 0, 30000), dtype=np.float32)
