"""What training looks at: the whole crop at the network's size, or windows of full resolution round a structure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from adaptmedseg.data.normalise import SEGVOL, Normalisation
from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.data.views import ResizeMode, resize_image, resize_labels

MIN_VOXELS = 8  # fewer voxels of a structure in a view are noise, not a target
PLACES = 256  # voxels of each structure that windows are centred on
Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class Windows:
    """Windows of full resolution of one prepared case, read one by one.

    `places` holds voxels (k, 3) of every structure that the case annotates and whose windows are wanted.
    """

    case: PreparedCase
    size: Size3
    normalisation: Normalisation
    places: dict[str, np.ndarray]

    def draw(self, structure: str, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        """A window (d, h, w) with a voxel of the structure in its middle half, and the masks (k, d, h, w) of all
        `structures`."""
        centre = self.places[structure][rng.integers(len(self.places[structure]))]
        shift = [int(rng.integers(-(n // 4), n // 4 + 1)) for n in self.size]
        corner = [
            min(max(int(c) - n // 2 + s, 0), limit - n) if limit >= n else -((n - limit) // 2)
            for c, s, n, limit in zip(centre, shift, self.size, self.case.shape, strict=True)
        ]
        place = (corner[0], corner[1], corner[2])
        image, masks = self.case.window(place, self.size, self.structures, self.normalisation)
        return torch.from_numpy(image), masks

    @property
    def structures(self) -> list[str]:
        """All that windows show, in order."""
        return sorted(self.places)

    def present(self, masks: np.ndarray) -> list[str]:
        """The structures of which a window's masks show enough."""
        shown = zip(self.structures, masks, strict=True)
        return [name for name, mask in shown if np.count_nonzero(mask) >= MIN_VOXELS]


@dataclass(frozen=True)
class CachedView:
    """The zoom-out view of one case: image (d, h, w) float16, labels (d, h, w) as bit masks.

    `bits` gives the bit of each structure that is annotated and present, `mirrored` its name after a left-right flip
    (for structures that only windows show, too). `dataset` is what balanced sampling counts by.
    """

    modality: str
    image: Tensor
    labels: np.ndarray
    bits: dict[str, int]
    mirrored: dict[str, str]
    dataset: str = ""
    windows: Windows | None = None

    @property
    def structures(self) -> list[str]:
        """All that this case can teach, in views or in windows."""
        return sorted({*self.bits, *(self.windows.places if self.windows else ())})

    def mask(self, name: str) -> np.ndarray:
        """The boolean mask (d, h, w) of a structure."""
        return (self.labels >> self.bits[name]) & 1 == 1

    def load(self) -> "CachedView":
        """The view with its voxels: itself."""
        return self


@dataclass(frozen=True)
class LazyView:
    """A view that did not fit into the cache: it is made anew whenever it is looked at."""

    modality: str
    bits: dict[str, int]
    mirrored: dict[str, str]
    make: Callable[[], CachedView] = field(repr=False)
    dataset: str = ""
    windows: Windows | None = None

    @property
    def structures(self) -> list[str]:
        """As `CachedView.structures`."""
        return sorted({*self.bits, *(self.windows.places if self.windows else ())})

    def load(self) -> CachedView:
        """The view, from disk."""
        return self.make()


class View(Protocol):
    """What a stream of batches needs of a view."""

    @property
    def modality(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def bits(self) -> dict[str, int]: ...
    @property
    def mirrored(self) -> dict[str, str]: ...
    @property
    def windows(self) -> Windows | None: ...
    @property
    def structures(self) -> list[str]: ...
    def load(self) -> CachedView: ...


@dataclass(frozen=True)
class ViewMaker:
    """Makes the view of a prepared case: the network's size, how it is resized and normalised, which structures."""

    size: Size3
    mode: ResizeMode
    structures: list[str] | None = None
    normalisation: Normalisation = SEGVOL

    def __call__(self, case: PreparedCase, mirror: Callable[[str], str], dataset: str = "") -> CachedView:
        """Resize a case to the network's input; structures of a few voxels in the view are left out."""
        image = resize_image(torch.from_numpy(case.image(self.normalisation))[None, None], self.size, self.mode)
        bit_masks = case.labels()
        stored = torch.from_numpy(bit_masks.astype(np.int64))[None, None]
        labels = resize_labels(stored, self.size)[0, 0].numpy().astype(bit_masks.dtype)
        bits = {name: case.structures.index(name) for name in self.wanted(case)}
        bits = {name: bit for name, bit in bits.items() if np.count_nonzero((labels >> bit) & 1) >= MIN_VOXELS}
        return CachedView(
            case.modality, image[0, 0].half(), labels, bits, {name: mirror(name) for name in bits}, dataset
        )

    def wanted(self, case: PreparedCase) -> list[str]:
        """The structures to learn from a case."""
        return [name for name in case.annotated if self.structures is None or name in self.structures]

    def windows(self, case: PreparedCase, seed: int) -> Windows:
        """Windows round every wanted structure of which the crop holds enough."""
        places = {}
        rng = np.random.default_rng([seed, 11])
        for name in self.wanted(case):
            if case.voxels_in_crop[name] < MIN_VOXELS:
                continue
            found = np.argwhere(case.mask(name))
            chosen = rng.choice(len(found), min(PLACES, len(found)), replace=False)
            places[name] = found[np.sort(chosen)].astype(np.int32)
        return Windows(case, self.size, self.normalisation, places)
