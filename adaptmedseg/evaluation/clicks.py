"""Where a user would click next: in the depth of the largest error, inside for a miss, outside for a false mark."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from adaptmedseg.evaluation.surfaces import Spacing


@dataclass(frozen=True)
class Click:
    """A voxel (d, h, w) of the crop, and whether it says 'inside' or 'outside' of the structure."""

    position: tuple[int, int, int]
    inside: bool


def next_click(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], spacing_mm: Spacing) -> Click | None:
    """A click on the largest connected error of a prediction (d, h, w), at its deepest voxel, as in interactive
    segmentation's usual robot user (Xu et al. 2016); None where there is no error.

    Missed and false voxels are different errors, also where they touch. Ties go to the lowest index.
    """
    largest: tuple[int, npt.NDArray[np.bool_], tuple[slice, ...], bool] | None = None
    for errors, inside in ((truth & ~prediction, True), (prediction & ~truth, False)):
        labels, count = ndimage.label(errors)
        if not count:
            continue
        sizes = np.bincount(labels.ravel())[1:]
        label = int(sizes.argmax())
        if largest is None or sizes[label] > largest[0]:
            place = ndimage.find_objects(labels)[label]
            largest = int(sizes[label]), labels[place] == label + 1, place, inside
    if largest is None:
        return None
    _, error, place, inside = largest
    depth = ndimage.distance_transform_edt(np.pad(error, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    d, h, w = (int(i) + s.start for i, s in zip(np.unravel_index(depth.argmax(), depth.shape), place, strict=True))
    return Click((d, h, w), inside)
