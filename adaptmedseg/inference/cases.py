"""One case from file to file: what `adaptmedseg predict` does with each image, within the memory that there is."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.headers import volume_size
from adaptmedseg.data.maps import write_probabilities
from adaptmedseg.data.registry import modality as find_modality
from adaptmedseg.data.volume import Volume, write_mask
from adaptmedseg.errors import UserError
from adaptmedseg.inference.asking import automatic_prompts
from adaptmedseg.inference.calibration import Calibration
from adaptmedseg.inference.case_note import Outcome, StructureNote, case_note
from adaptmedseg.inference.judging import Judge
from adaptmedseg.inference.machine import Free, PeakMemory, free_memory, release
from adaptmedseg.inference.memory import Job, Need, Step, choose_step, estimate, footprint, is_out_of_memory, ladder
from adaptmedseg.inference.naming import Case, structure_file_names
from adaptmedseg.inference.prediction import Answer, label_dtype
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.inference.prompt_file import PromptSet
from adaptmedseg.inference.written import Written, workplace

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Products:
    """What to write, and where: one label map a case and a JSON beside it; with `each` one mask a structure too, and
    with `probabilities` one map a structure, both in a folder of the case's name."""

    out: Path
    each: bool = False
    probabilities: bool = False
    overwrite: bool = False

    def check(self, case: Case, prompts: Path | None = None) -> None:
        """UserError where `out` is no folder, and where a case would replace its own image or file of prompts, or,
        without `overwrite`, any file."""
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out}: is a file; choose a folder for --out")
        target = case.mask_path(self.out)
        note = case.note_path(self.out)
        if prompts is not None and note.resolve() == prompts.resolve():
            raise UserError(
                f"{note}: holds the prompts, which the note beside the mask would replace; choose another --out"
            )
        if target.resolve() == case.image.resolve():
            raise UserError(f"{target}: is the image itself, which the mask would replace; choose another --out")
        paths = [target, note]
        if self.each or self.probabilities:
            paths.append(case.folder(self.out))
        for path in paths:
            if path.exists() and not self.overwrite:
                raise UserError(f"{path}: exists already; choose another --out or pass --overwrite")


class CaseRunner:
    """Segments cases one by one. A case that does not fit into memory runs in a humbler way, which is announced; the
    next one starts again as asked for."""

    def __init__(
        self,
        predictor: Predictor,
        modality: str,
        products: Products,
        *,
        zoom: bool | None = None,
        tell: Tell = print,
        free: Callable[[torch.device], Free] = free_memory,
        confidence: bool = False,
        calibration: Calibration | None = None,
    ):
        self.predictor, self.products, self.tell, self.free = predictor, products, tell, free
        self.confidence, self.calibration = confidence, calibration
        self.modality = find_modality(modality)
        self.zoom = predictor.loaded.zooms(self.modality.name) if zoom is None else zoom
        self.steps = ladder(predictor.device, predictor.settings, exact=predictor.exact)
        self.footprint = footprint(predictor.loaded)

    def run(self, case: Case, prompts: PromptSet | None) -> Outcome:
        """Write the masks of a case and the note beside them; gives what the note says.

        Raises:
            UserError: the image or the prompts cannot be used, the disk or the memory is full.
        """
        self.products.check(case)
        prompts = automatic_prompts(self.predictor.loaded, self.modality.name) if prompts is None else prompts
        self.predictor.forget()
        position = self._fitting_step(case, prompts)
        given_up = [step.said for step in self.steps[1 : position + 1]]
        if given_up:
            self.tell(f"{case.image}: memory is short, so it runs with {', '.join(given_up)}")
        while True:
            step = self.steps[position]
            try:
                self.predictor.use(step.device, step.settings)
                return self._segment(case, prompts, given_up)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # Only here, after the error with its frames is gone, can memory be had back.
            self.predictor.forget()
            gc.collect()
            release(step.device)
            position += 1
            if position == len(self.steps):
                raise UserError(
                    f"{case.image}: memory is full even with everything given up that can be; close other programs, "
                    "take a larger machine or resample the image (--device cpu spares a graphics processor)"
                )
            given_up.append(self.steps[position].said)
            self.tell(f"{case.image}: memory is full; trying again with {given_up[-1]}")

    def _fitting_step(self, case: Case, prompts: PromptSet) -> int:
        size = volume_size(case.image, case.series)
        job = Job(size, len(prompts.prompts), self.zoom, self.products.probabilities)
        view, here = self.predictor.loaded.size, self.predictor.device

        def need(step: Step) -> Need:
            return estimate(self.footprint, view, job, step, here)

        return choose_step(self.steps, str(case.image), need, self.free)

    def _segment(self, case: Case, prompts: PromptSet, given_up: Sequence[str]) -> Outcome:
        predictor = self.predictor
        peak = PeakMemory(predictor.device)
        predictor.set_image(case.image, self.modality.name, case.channel, case.series)
        started, encoded = time.perf_counter(), predictor.segmenter.timings["encode"]
        judge = Judge(predictor, self.calibration)
        answers = predictor.answers(prompts, zoom=self.zoom)
        if self.confidence:
            answers = judge.watch(answers)
        target, written = case.mask_path(self.products.out), Written()
        with workplace(target) as place:
            notes = self._write(case, place, answers, len(prompts.prompts), written)
            network = predictor.segmenter.timings
            elapsed = time.perf_counter() - started
            known = network["encode"] - encoded + network["decode"] + written.seconds
            seconds = {**predictor.timings, **network, "stitch": elapsed - known, "write": written.seconds}
            said = self._remarks(predictor.volume, notes)
            outcome = case_note(predictor, case, self.modality.name, prompts, self.zoom, notes)
            if self.confidence:
                started = time.perf_counter()
                outcome["confidence"] = judge.confidence(prompts, self.zoom)
                seconds["confidence"] = time.perf_counter() - started
            outcome |= {"remarks": said, "memory_given_up": list(given_up), "peak_memory_mib": peak.read()}
            outcome["seconds"] = {stage: round(value, 3) for stage, value in seconds.items()}
            written.add(lambda path: write_atomic(path, json.dumps(outcome, indent=1)), place / "note.json",
                        case.note_path(self.products.out))  # fmt: skip
            written.move()
        for sentence in said:
            self.tell(f"{case.image}: {sentence}")
        return outcome

    def _write(
        self, case: Case, place: Path, answers: Iterator[Answer], count: int, written: Written
    ) -> list[StructureNote]:
        """Masks of all structures into a temporary folder, one structure in memory at a time."""
        volume = self.predictor.volume
        labels = np.zeros(volume.data.shape, label_dtype(count))
        names: dict[str, str] = {}
        notes = []
        for label, answer in enumerate(answers, 1):
            mask = answer.mask
            labels[mask] = label
            names = structure_file_names([*names, answer.structure])
            files = self._write_one(place, case.folder(self.products.out), names[answer.structure], answer, written)
            notes.append(StructureNote.of(label, answer, float(mask.sum()) * volume.grid.voxel_ml, files))
        final = case.mask_path(self.products.out)
        written.add(lambda path: write_mask(path, labels, volume.grid), place / "labels.nii.gz", final)
        return notes

    def _write_one(self, place: Path, folder: Path, name: str, answer: Answer, written: Written) -> dict[str, str]:
        """The files of one structure, where they are wanted; gives their paths in the output folder."""
        volume, finals = self.predictor.volume, {}
        grid = volume.grid
        if self.products.each:
            finals["mask"] = folder / f"{name}.nii.gz"
            temporary = place / f"mask of {name}.nii.gz"
            written.add(lambda path: write_mask(path, answer.mask, grid), temporary, finals["mask"])
        if self.products.probabilities:
            finals["probabilities"] = folder / f"{name}_probability.nii.gz"
            temporary = place / f"probability of {name}.nii.gz"
            written.add(
                lambda path: write_probabilities(path, answer.probabilities, grid), temporary, finals["probabilities"]
            )
        if volume.path.resolve() in [final.resolve() for final in finals.values()]:
            raise UserError(f"{volume.path}: is the image itself, which a mask would replace; choose another --out")
        return {kind: str(final.relative_to(self.products.out)) for kind, final in finals.items()}

    def _remarks(self, volume: Volume, notes: Sequence[StructureNote]) -> list[str]:
        """What the user should know: doubts about the geometry or the modality, and structures that were not found."""
        said = list(volume.notes)
        if self.predictor.loaded.untrained:
            said.append(self.predictor.loaded.untrained)
        tag = volume.modality_tag
        if tag in ("CT", "MR") and tag != self.modality.family:
            said.append(f"the DICOM series says that it is {tag}, and --modality says {self.modality.name}")
        doubt = self.predictor.modality_doubt()
        if doubt:
            said.append(doubt)
        unseen = [note.structure for note in notes if not note.found and not note.windows]
        lost = [note.structure for note in notes if not note.found and note.windows]
        if unseen:
            said.append(f"no voxel found of {', '.join(unseen)}: the view of the whole image shows none")
        if lost:
            said.append(f"no voxel found of {', '.join(lost)}: nothing was left at full resolution")
        return said
