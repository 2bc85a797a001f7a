"""The Python interface for prediction: set an image once, ask for structures as often as one likes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from adaptmedseg.data.normalise import crop_slices, normalise_volume
from adaptmedseg.data.registry import modality as find_modality
from adaptmedseg.data.registry import normalise_name, structure
from adaptmedseg.data.volume import Volume, read_image, write_mask
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.inference.loading import LoadedModel, load_model
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.prompts import Prompts


@dataclass(frozen=True)
class Prediction:
    """Masks of one image: `masks` maps names to boolean arrays (d, h, w) on the canonical grid of `volume`."""

    volume: Volume
    masks: dict[str, np.ndarray]

    def label_map(self) -> np.ndarray:
        """One integer map (d, h, w): structure i of the request has label i + 1; where two overlap, the later wins."""
        labels = np.zeros(self.volume.data.shape, np.uint8 if len(self.masks) < 256 else np.uint16)
        for value, mask in enumerate(self.masks.values(), 1):
            labels[mask] = value
        return labels

    def label_names(self) -> dict[int, str]:
        """Label value to structure name of `label_map`."""
        return dict(enumerate(self.masks, 1))

    def save(self, path: Path) -> None:
        """Write the label map on the scanner's grid of the input; re-read and checked before it gets its name."""
        write_mask(path, self.label_map(), self.volume.grid)


class Predictor:
    """Encode an image once, then predict from names, points or boxes.

    >>> predictor = Predictor.load("runs/mri_adapter")
    >>> predictor.set_image("scan.nii.gz", modality="T2 MRI")
    >>> predictor.predict(["prostate"]).save(Path("prostate.nii.gz"))
    """

    def __init__(self, loaded: LoadedModel, device: torch.device, bf16: bool = True):
        self.loaded = loaded
        self.segmenter = CropSegmenter(loaded.model.to(device), loaded.size, loaded.resize, device, bf16)
        self._volume: Volume | None = None
        self._crop: tuple[slice, ...] = ()
        self._modality = ""

    @classmethod
    def load(cls, model: str, base: str | None = None, device: str = "auto") -> "Predictor":
        """From a run folder, an adapter file, a base file or a known name; `base` overrides what an adapter names."""
        return cls(load_model(model, base), pick_device(device))

    def set_image(self, image: str | Path | Volume, modality: str, channel: int | None = None) -> None:
        """Read, normalise and encode an image. UserError for unreadable files and unknown modalities."""
        volume = image if isinstance(image, Volume) else read_image(image, channel)
        name = find_modality(modality).name
        normalised, crop = normalise_volume(volume)
        self._volume, self._modality, self._crop = volume, name, crop_slices(crop)
        self.segmenter.set_crop(np.ascontiguousarray(normalised[self._crop]), name)

    def predict(
        self,
        structures: Sequence[str],
        *,
        points_mm: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        boxes_mm: np.ndarray | None = None,
    ) -> Prediction:
        """Masks of structures, each asked by its name and, where given, by points or a box.

        points_mm (n, p, 3) with point_labels (n, p) of 1 inside, 0 outside, and boxes_mm (n, 2, 3) as two opposite
        corners, are in world millimetres (RAS), one row a structure. Raises UserError for an unknown structure or a
        prompt outside the image.
        """
        if self._volume is None:
            raise RuntimeError("set_image comes before predict")
        names = self.names(structures)
        points = None if points_mm is None else self._to_view(points_mm, len(names), "points_mm")
        boxes = None if boxes_mm is None else self._to_view(boxes_mm, len(names), "boxes_mm").sort(dim=1).values
        labels = None if point_labels is None else torch.as_tensor(point_labels)
        if (None if labels is None else labels.shape) != (None if points is None else points.shape[:2]):
            raise UserError("point_labels: give one label a point, (n, p), 1 inside and 0 outside, beside points_mm")
        prompts = Prompts(
            torch.zeros(len(names), dtype=torch.long), names, [self._modality], True, points, labels, boxes
        )
        masks = {}
        for name, probability in zip(names, self.segmenter.probabilities(prompts), strict=True):
            mask = np.zeros(self._volume.data.shape, bool)
            mask[self._crop] = probability > 0.5
            masks[name] = mask
        return Prediction(self._volume, masks)

    def names(self, structures: Sequence[str]) -> list[str]:
        """Canonical names; UserError for one that neither the model nor the registry knows, or that is named twice."""
        own = {normalise_name(name): name for name in self.loaded.structures}
        names = [own.get(normalise_name(name)) or structure(name).name for name in structures]
        if not names:
            raise UserError(f"no structure named; choose from: {', '.join(sorted(own.values()))}")
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise UserError(f"structure '{min(twice)}' is named twice; name each once")
        unknown = [name for name in names if name not in own.values()]
        if unknown and own:
            known = ", ".join(sorted(own.values()))
            raise UserError(f"structure '{unknown[0]}': this model was not trained on it; it knows {known}")
        return names

    def _to_view(self, world_mm: np.ndarray, count: int, what: str) -> torch.Tensor:
        """World mm (n, p, 3) to (d, h, w) voxels of the view."""
        assert self._volume is not None
        world = np.asarray(world_mm, dtype=np.float64)
        if world.ndim != 3 or world.shape[0] != count or world.shape[2] != 3:
            raise UserError(f"{what}: has shape {world.shape}; give (n, p, 3), n = {count}")
        inverse = np.linalg.inv(self._volume.grid.canonical().affine)
        voxel = (world @ inverse[:3, :3].T + inverse[:3, 3])[..., ::-1]
        shape = np.array(self._volume.data.shape)
        outside = ~((voxel >= -0.5) & (voxel <= shape - 0.5)).all(axis=-1)  # written so that NaN lies outside
        if outside.any():
            raise UserError(f"{what}: {world[outside][0].round(1).tolist()} mm lies outside the image; give RAS mm")
        start = np.array([s.start for s in self._crop])
        return self.segmenter.to_view(torch.from_numpy(voxel - start)).float()
