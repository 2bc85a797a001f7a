"""Files to files by a support set: what `adaptmedseg predict --support` does with each picture or volume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.maps import write_probabilities
from adaptmedseg.data.normalise import crop_slices
from adaptmedseg.data.pictures.read import read_picture
from adaptmedseg.data.volume import read_image, write_mask
from adaptmedseg.errors import UserError
from adaptmedseg.inference.case_note import FORMAT, FORMAT_VERSION, Outcome, image_hash, versions
from adaptmedseg.inference.cases import Products, Tell
from adaptmedseg.inference.naming import Case, structure_file_names
from adaptmedseg.inference.picture_cases import write_structures
from adaptmedseg.inference.picture_loading import LoadedPictureModel
from adaptmedseg.inference.picture_space import to_pixel_prompts
from adaptmedseg.inference.prediction import label_dtype
from adaptmedseg.inference.prompt_file import PromptSet
from adaptmedseg.inference.support.segmenter import SupportSegmenter, label_map
from adaptmedseg.inference.support.volumes import (
    DrawnSlices,
    SlicedVolume,
    drawn_slices,
    keep_drawn,
    own_supports,
    segment_volume,
)
from adaptmedseg.inference.written import Written, workplace

OVERLAP = "where structures overlap, the surer one wins"
MakeSegmenter = Callable[..., SupportSegmenter]


@dataclass(frozen=True)
class Shared:
    """What all cases of one command share; `support` says in words what the supports are."""

    loaded: LoadedPictureModel
    products: Products
    support: str
    tell: Tell = print

    def note(self, case: Case, segmenter: SupportSegmenter, sizes: Mapping[str, float], unit: str) -> dict[str, Any]:
        """What the JSON beside a mask says, but for files and timings; `sizes` in `unit` by structure."""
        empty = [name for name, size in sizes.items() if not size]
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "image": case.image.name,
            "image_sha256": image_hash(case.image),
            "labels": {str(label): name for label, name in enumerate(sizes, 1)},
            "overlap": OVERLAP,
            "support": self.support,
            "supports": {name: task.supports for name, task in segmenter.tasks.items()},
            "expected_dice": {name: round(task.expected_dice, 4) for name, task in segmenter.tasks.items()},
            unit: dict(sizes),
            "model": self.loaded.lineage,
            "licence": self.loaded.licence,
            "hashes": self.loaded.hashes,
            "device": str(segmenter.sam.device),
            "versions": versions(),
            "remarks": [f"nothing found of {', '.join(empty)}"] if empty else [],
        }

    def finish(self, case: Case, outcome: Outcome, place: Path, written: Written, started: float) -> Outcome:
        """Write the note, put all files in their places, tell the remarks."""
        seconds = time.perf_counter() - started - written.seconds
        outcome["seconds"] = {"segment": round(seconds, 3), "write": round(written.seconds, 3)}
        text = json.dumps(outcome, indent=1)
        written.add(lambda path: write_atomic(path, text), place / "note.json", case.note_path(self.products.out))
        written.move()
        for sentence in outcome["remarks"]:
            self.tell(f"{case.image}: {sentence}")
        return outcome


class SupportPictureRunner:
    """Segments pictures one by one with one support set."""

    def __init__(self, shared: Shared, segmenter: SupportSegmenter):
        self.shared, self.segmenter = shared, segmenter

    def run(self, case: Case, prompts: PromptSet | None = None) -> Outcome:
        """Write a picture's masks and the note beside them; gives what the note says. `prompts`: a user's own.

        UserError where the picture or the prompts cannot be used, or the disk is full.
        """
        started = time.perf_counter()
        self.shared.products.check(case)
        picture = read_picture(case.image)
        asked = [] if prompts is None else to_pixel_prompts(prompts, picture.shape, case.image.name)
        for prompt in asked:
            if prompt.structure not in self.segmenter.tasks:
                raise UserError(
                    f"{prompts.source if prompts else ''}: '{prompt.structure}' is none of the structures looked for, "
                    f"{', '.join(self.segmenter.tasks)}; name one of these, or leave its points and box out"
                )
        answers = self.segmenter.segment(picture.colours(), {prompt.structure: prompt for prompt in asked})
        written = Written()
        with workplace(case.mask_path(self.shared.products.out)) as place:
            files = write_structures(case, self.shared.products, place, answers, label_map(answers), written)
            areas = {answer.structure: int(answer.mask.sum()) for answer in answers}
            outcome = self.shared.note(case, self.segmenter, areas, "area_pixels")
            outcome |= {"prompted": [prompt.structure for prompt in asked], "shape": list(picture.shape)}
            outcome["remarks"] = [*picture.notes, *outcome["remarks"]]
            outcome["files"] = {name: paths for name, paths in files.items() if paths}
            return self.shared.finish(case, outcome, place, written, started)


class SupportVolumeRunner:
    """Segments volumes slice by slice, with a support set for all, or each with drawn slices of its own."""

    def __init__(self, shared: Shared, prepare: Callable[[Case], PreparedVolume]):
        self.shared, self.prepare = shared, prepare

    def run(self, case: Case) -> Outcome:
        """Write a volume's masks on its own grid and the note beside them; gives what the note says.

        UserError where the volume cannot be used, or the disk is full.
        """
        started = time.perf_counter()
        products = self.shared.products
        products.check(case)
        ready = self.prepare(case)
        logits = segment_volume(ready.segmenter, ready.sliced)
        if ready.drawn is not None:
            keep_drawn(logits, ready.drawn, ready.names, ready.sliced.planes.number)
        written, grid = Written(), ready.sliced.volume.grid
        with workplace(case.mask_path(products.out)) as place:
            labels = _volume_labels(logits, ready.sliced)
            written.add(
                lambda path: write_mask(path, labels, grid), place / "labels.nii.gz", case.mask_path(products.out)
            )
            files = self._write_each(case, place, logits, ready.sliced, written)
            volumes = {name: round(float((values > 0).sum()) * grid.voxel_ml, 3) for name, values in logits.items()}
            outcome = self.shared.note(case, ready.segmenter, volumes, "volume_ml")
            outcome |= {"axis": ready.sliced.planes.axis, "slices": len(ready.sliced.planes), "files": files}
            if ready.drawn is not None:
                outcome["drawn_slices"] = ready.drawn.slices
            return self.shared.finish(case, outcome, place, written, started)

    def _write_each(
        self, case: Case, place: Path, logits: dict[str, np.ndarray], sliced: SlicedVolume, written: Written
    ) -> dict[str, dict[str, str]]:
        products, grid, files = self.shared.products, sliced.volume.grid, {}
        names = structure_file_names(list(logits))
        for name, values in logits.items():
            finals: dict[str, str] = {}
            chances = np.zeros(sliced.volume.data.shape, np.float32)
            chances[crop_slices(sliced.crop)] = 1 / (1 + np.exp(-np.clip(values, -80, 80)))
            wanted: list[tuple[str, bool, Callable[..., None], np.ndarray]] = [
                ("mask", products.each, write_mask, chances > 0.5),
                ("probabilities", products.probabilities, write_probabilities, chances),
            ]
            for kind, want, write, array in wanted:
                if want:
                    final = (
                        case.folder(products.out) / f"{names[name]}{'' if kind == 'mask' else '_probability'}.nii.gz"
                    )
                    temporary = place / f"{kind} of {names[name]}.nii.gz"
                    written.add(lambda path, write=write, array=array: write(path, array, grid), temporary, final)  # type: ignore[misc]
                    finals[kind] = str(final.relative_to(products.out))
            if finals:
                files[name] = finals
        return files


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """A volume with what is to find its structures; `drawn` with the `names` of its values where supports are its own
    slices."""

    sliced: SlicedVolume
    segmenter: SupportSegmenter
    drawn: DrawnSlices | None = None
    names: Sequence[str] = ()


def with_own_slices(case: Case, support: Path, names: Sequence[str], make: MakeSegmenter) -> PreparedVolume:
    """A volume whose supports are slices of itself, drawn in the label map `support`."""
    sliced = SlicedVolume.of(read_image(case.image, case.channel, case.series))
    drawn = drawn_slices(support, sliced.volume, sliced.crop)
    sliced = SlicedVolume.of(sliced.volume, drawn.axis)
    supports = own_supports(support, sliced, drawn, names)
    called = list(names) or [f"label {value}" for value in range(1, int(drawn.labels.max()) + 1)]
    return PreparedVolume(sliced, make(supports), drawn, called)


def _volume_labels(logits: dict[str, np.ndarray], sliced: SlicedVolume) -> np.ndarray:
    stacked = np.stack(list(logits.values()))
    labels = np.zeros(sliced.volume.data.shape, label_dtype(len(logits)))
    labels[crop_slices(sliced.crop)] = np.where(stacked.max(0) > 0, stacked.argmax(0) + 1, 0)
    return labels
