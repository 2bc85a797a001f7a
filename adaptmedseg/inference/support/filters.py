"""Fixed filters of a picture: what lies within a cell of the encoder's grid, which its features do not resolve."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

SCALES = (1.0, 2.0, 4.0)  # standard deviations in pixels of the working picture
_COLOUR = 8  # a picture whose colours differ by less, of 255, is grey


def local_features(image: np.ndarray) -> Tensor:
    """Colours (h, w, 3), uint8, to maps (k, h, w), float32: the grey value as it is and blurred, and its square; the
    gradient's length and the two curvatures (eigenvalues of the Hessian) at two scales; two blurred colour differences.

    The picture is standardised first, so that brightness and contrast play no part.
    """
    colours = image.astype(np.float32)
    grey = colours.mean(axis=-1)
    grey = (grey - grey.mean()) / max(float(grey.std()), 1e-3)
    blurred = [grey, *(ndimage.gaussian_filter(grey, scale) for scale in SCALES)]
    maps = [*blurred, *(np.square(one) for one in blurred)]
    for scale in SCALES[:2]:
        maps.append(scale * ndimage.gaussian_gradient_magnitude(grey, scale))
        maps += _curvatures(grey, scale)
    red, green, blue = np.moveaxis(colours, -1, 0) / 255
    flat = max(float(np.abs(red - green).max()), float(np.abs(green - blue).max())) * 255 < _COLOUR
    for difference in (red - green, green - blue):
        maps.append(np.zeros_like(grey) if flat else ndimage.gaussian_filter(difference, SCALES[0]) * 4)
    return torch.from_numpy(np.stack(maps).astype(np.float32))


def _curvatures(grey: np.ndarray, scale: float) -> list[np.ndarray]:
    """The smaller and the larger eigenvalue of the Hessian (h, w), times scale²."""
    yy, xx, xy = (ndimage.gaussian_filter(grey, scale, order=order) * scale**2 for order in ((2, 0), (0, 2), (1, 1)))
    middle, spread = (yy + xx) / 2, np.sqrt(((yy - xx) / 2) ** 2 + xy**2)
    return [middle - spread, middle + spread]
