"""The Python interface for prediction: set an image once, ask for structures as often as one likes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from adaptmedseg.data.normalise import Crop, crop_slices, normalised_crop
from adaptmedseg.data.prepared import PreparedCase, whole_volume
from adaptmedseg.data.registry import modality as find_modality
from adaptmedseg.data.registry import normalise_name, structure
from adaptmedseg.data.volume import Volume, read_image
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.inference.asking import automatic_prompts, check_prompts, prompt_origin
from adaptmedseg.inference.loading import LoadedModel, load_model
from adaptmedseg.inference.modality_check import modality_doubt
from adaptmedseg.inference.precision import hold_products_in_bf16, holds_bf16, inference_precision
from adaptmedseg.inference.prediction import Answer, Prediction
from adaptmedseg.inference.prompt_file import PromptSet, parse_prompts, text_prompt_set
from adaptmedseg.inference.prompt_space import to_structure_prompts
from adaptmedseg.inference.segmenter import DEFAULTS, CropSegmenter, Progress
from adaptmedseg.inference.settings import InferenceSettings
from adaptmedseg.inference.zoom import WindowLattice
from adaptmedseg.models.prompts import StructurePrompt

__all__ = ["Answer", "Prediction", "Predictor"]


class Predictor:
    """Encode an image once, then predict from names, points or boxes.

    >>> predictor = Predictor.load("runs/mri_adapter")
    >>> predictor.set_image("scan.nii.gz", modality="T2 MRI")
    >>> predictor.predict(["prostate"]).save(Path("prostate.nii.gz"))

    Points and boxes are given as in `docs/prompts.md`:

    >>> prompts = predictor.parse({"version": 1, "space": "world_mm", "prompts": [
    ...     {"structure": "prostate", "points": [{"position": [4.0, -12.5, 30.0], "label": "positive"}]}]})
    >>> predictor.predict(prompts=prompts).masks["prostate"]
    """

    def __init__(
        self,
        loaded: LoadedModel,
        device: torch.device,
        settings: InferenceSettings = DEFAULTS,
        *,
        exact: bool = False,
    ):
        self.loaded, self.exact = loaded, exact
        self.timings: dict[str, float] = {}
        self._volume: Volume | None = None
        self._crop: Crop = ((0, 0), (0, 0), (0, 0))
        self._modality = ""
        self.use(device, replace(settings, bf16=False) if exact else settings)

    @classmethod
    def load(
        cls,
        model: str,
        base: str | None = None,
        device: str = "auto",
        settings: InferenceSettings = DEFAULTS,
        *,
        exact: bool = False,
    ) -> Predictor:
        """From a run folder, an adapter file, a base file or a known name; `base` overrides what an adapter names.

        With settings that ask for bf16, as they do by default, the weights of matrix products are kept in it. `exact`
        asks for the reference's own numbers instead: float32, and windows on the reference's lattice.
        """
        loaded = load_model(model, base)
        if settings.bf16 and not exact:
            hold_products_in_bf16(loaded.model)
        return cls(loaded, pick_device(device), settings, exact=exact)

    @property
    def device(self) -> torch.device:
        return self.segmenter.device

    @property
    def settings(self) -> InferenceSettings:
        return self.segmenter.settings

    @property
    def volume(self) -> Volume:
        """The image that was set last."""
        if self._volume is None:
            raise RuntimeError("set_image comes before predict")
        return self._volume

    @property
    def crop(self) -> Crop:
        """(start, stop) along (d, h, w) of what the model sees of the image."""
        return self._crop

    def use(self, device: torch.device, settings: InferenceSettings) -> None:
        """Move the model to a device and change the settings; the image is forgotten."""
        if not settings.bf16 and holds_bf16(self.loaded.model):
            raise ValueError("the model was loaded for bf16; load it with InferenceSettings(bf16=False)")
        self._volume = None
        model = self.loaded.model.to(device)
        lattice: WindowLattice = "region" if self.exact else "volume"
        self.segmenter = CropSegmenter(model, self.loaded.size, self.loaded.resize, device, settings, lattice)

    def forget(self) -> None:
        """Let go of the image and its embeddings."""
        self.use(self.device, self.settings)

    def set_image(
        self, image: str | Path | Volume, modality: str, channel: int | None = None, series: str | None = None
    ) -> None:
        """Read, normalise and encode an image.

        Args:
            image: a file, the folder of a DICOM series, or a volume that was read.
            modality: as the registry knows it ("CT", "T2 MRI", ...).
            channel: which volume of a 4D file.
            series: which DICOM series of a folder that holds several.

        Raises:
            UserError: unreadable files, unknown modalities.
        """
        name = find_modality(modality).name
        self._volume = None
        started = time.perf_counter()
        volume = image if isinstance(image, Volume) else read_image(image, channel, series)
        read = time.perf_counter()
        inside, crop = normalised_crop(volume, self.loaded.normalisation_of(name))
        self.timings = {"read": read - started, "normalise": time.perf_counter() - read}
        self.segmenter.set_crop(inside, name)
        self._volume, self._modality, self._crop = volume, name, crop

    def set_case(self, case: PreparedCase) -> None:
        """Encode the image of a prepared case, with the statistics that it was prepared with.

        What the prepared set left out round the crop is filled with the crop's darkest value.
        """
        self._volume = None
        started = time.perf_counter()
        volume = whole_volume(case)
        inside = case.image(self.loaded.normalisation_of(case.modality))
        self.timings = {"read": time.perf_counter() - started, "normalise": 0.0}
        self.segmenter.set_crop(inside, case.modality)
        self._volume, self._modality, self._crop = volume, case.modality, case.crop

    def predict(
        self,
        structures: Sequence[str] | None = None,
        *,
        prompts: PromptSet | None = None,
        zoom: bool | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Masks of structures asked by name, or by prompts, or, with neither, of all that the model knows by itself.

        Args:
            structures: names; not beside `prompts`.
            prompts: from `parse` or `read_prompts`.
            zoom: look again by windows at full resolution; None for what the model was made for.
            progress: called with (windows done, all windows) while zooming in.

        Raises:
            UserError: unknown structures, prompts outside of the image, prompts that the model cannot take.
        """
        if structures is not None and prompts is not None:
            raise ValueError("give structures or prompts; prompts name their structures")
        if structures is not None:
            prompts = text_prompt_set(self.names(structures))
        answers, masks, origins = [], {}, {}
        for answer in self.answers(prompts, zoom=zoom, progress=progress):
            answers.append((answer.structure, answer.windows, answer.found))
            masks[answer.structure], origins[answer.structure] = answer.mask, answer.origin
        windows = {name: count for name, count, _ in answers}
        return Prediction(self.volume, masks, origins, windows, tuple(name for name, _, found in answers if not found))

    def answers(
        self, prompts: PromptSet | None = None, *, zoom: bool | None = None, progress: Progress | None = None
    ) -> Iterator[Answer]:
        """As `predict`, one structure after another, so that memory holds one at a time; errors are raised at once."""
        prompts = automatic_prompts(self.loaded, self._modality) if prompts is None else prompts
        check_prompts(self.loaded, self._modality, prompts)
        return self._answers(
            prompts, self.placed(prompts), self.loaded.zooms(self._modality) if zoom is None else zoom, progress
        )

    def placed(self, prompts: PromptSet) -> list[StructurePrompt]:
        """Prompts in voxels of the crop that the model sees. UserError for those that lie outside of it."""
        return to_structure_prompts(prompts, self.volume.grid, self._crop, self.volume.path.name)

    def _answers(
        self, prompts: PromptSet, asked: Sequence[StructurePrompt], zoom: bool, progress: Progress | None
    ) -> Iterator[Answer]:
        shape = cast(tuple[int, int, int], self.volume.data.shape)
        results = self.segmenter.segment(asked, zoom, progress)
        for entry, result in zip(prompts.prompts, results, strict=True):
            origin = prompt_origin(self.loaded, self._modality, entry)
            yield Answer(entry.structure, origin, result, crop_slices(self._crop), shape)

    def modality_doubt(self) -> str:
        """A sentence where the model thinks that the image is of another modality than stated, else nothing."""
        with inference_precision(self.device, self.settings.bf16):
            return modality_doubt(self.loaded.model, self._modality, self.segmenter.view_embedding)

    def parse(self, document: object) -> PromptSet:
        """Prompts from a document as in `docs/prompts.md`, read already; the model's own names are known."""
        return parse_prompts(document, canonical=self.name)

    def names(self, structures: Sequence[str]) -> list[str]:
        """Canonical names; UserError for one that neither the model nor the registry knows, or that is named twice."""
        names = [self.name(name) for name in structures]
        if not names:
            raise UserError(f"no structure named; choose from: {', '.join(self.loaded.structures)}")
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise UserError(f"structure '{min(twice)}' is named twice; name each once")
        return names

    def name(self, structure_name: str) -> str:
        """The canonical name of one structure that the model was trained on."""
        own = {normalise_name(name): name for name in self.loaded.structures}
        name = own.get(normalise_name(structure_name)) or structure(structure_name).name
        if own and name not in own.values():
            known = ", ".join(sorted(own.values()))
            raise UserError(f"structure '{name}': this model was not trained on it; it knows {known}")
        return name
