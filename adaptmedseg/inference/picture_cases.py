"""One picture from file to file: what `adaptmedseg predict` does with each of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.pictures.read import is_picture, picture_stem
from adaptmedseg.data.pictures.write import write_png, write_probabilities
from adaptmedseg.errors import UserError
from adaptmedseg.inference.case_note import FORMAT, FORMAT_VERSION, Outcome, image_hash, versions
from adaptmedseg.inference.cases import Products, Tell
from adaptmedseg.inference.naming import Case, Found, check_distinct, structure_file_names
from adaptmedseg.inference.picture_space import to_pixel_prompts
from adaptmedseg.inference.pictures import PictureAnswer, PicturePredictor
from adaptmedseg.inference.prediction import label_dtype
from adaptmedseg.inference.prompt_file import PromptSet, StructurePrompts
from adaptmedseg.inference.prompt_origin import JOIN, TEXT, USER_BOX, USER_POINTS
from adaptmedseg.inference.written import Written, workplace

MASK_SUFFIX = ".png"


def holds_pictures(path: Path) -> bool:
    """Whether a path is a picture or a folder that holds some."""
    if path.is_dir():
        return any(is_picture(file) for file in path.iterdir() if file.is_file())
    return is_picture(path)


def find_pictures(path: Path) -> Found:
    """The pictures of a path, sorted by name. UserError where two masks would have one name."""
    files = sorted(file for file in path.iterdir() if file.is_file() and is_picture(file)) if path.is_dir() else [path]
    cases = [Case(picture_stem(file), file, mask_suffix=MASK_SUFFIX) for file in files]
    check_distinct(path, cases)
    return Found(cases, [])


class Drawn(Protocol):
    """One structure of a picture: boolean `mask` and `probabilities` (h, w)."""

    @property
    def structure(self) -> str: ...
    @property
    def mask(self) -> np.ndarray: ...
    @property
    def probabilities(self) -> np.ndarray: ...


def write_structures(
    case: Case, products: Products, place: Path, answers: Sequence[Drawn], labels: np.ndarray, written: Written
) -> dict[str, dict[str, str]]:
    """The label map (h, w) of a picture and what is wanted of each structure; gives the latter's paths in the output
    folder. UserError where one of them would replace the picture."""
    names = structure_file_names([answer.structure for answer in answers])
    files: dict[str, dict[str, str]] = {}
    for label, answer in enumerate(answers, 1):
        folder, name = case.folder(products.out), names[answer.structure]
        finals: dict[str, Path] = {}
        if products.each:
            finals["mask"] = folder / f"{name}.png"
            white = answer.mask.astype(np.uint8) * 255
            written.add(partial(write_png, values=white), place / f"mask {label}.png", finals["mask"])
        if products.probabilities:
            finals["probabilities"] = folder / f"{name}_probability.tif"
            write = partial(write_probabilities, values=answer.probabilities)
            written.add(write, place / f"probability {label}.tif", finals["probabilities"])
        if case.image.resolve() in [final.resolve() for final in finals.values()]:
            raise UserError(f"{case.image}: is the image itself, which a mask would replace; choose another --out")
        files[answer.structure] = {kind: str(path.relative_to(products.out)) for kind, path in finals.items()}
    written.add(partial(write_png, values=labels), place / "labels.png", case.mask_path(products.out))
    return files


class PictureRunner:
    """Segments pictures one by one: a label map, a note, and what else is wanted, all of a picture or nothing."""

    def __init__(self, predictor: PicturePredictor, products: Products, tell: Tell = print):
        self.predictor, self.products, self.tell = predictor, products, tell

    def run(self, case: Case, prompts: PromptSet) -> Outcome:
        """Write a picture's masks on its own pixels, and the note beside them; gives what the note says.

        Raises UserError where the picture or the prompts cannot be used, or the disk is full.
        """
        self.products.check(case)
        self.predictor.set_image(case.image)
        classes = self.predictor.loaded.classes
        asked = to_pixel_prompts(prompts, self.predictor.picture.shape, case.image.name, classes)
        answers = self.predictor.predict(asked)
        target, written = case.mask_path(self.products.out), Written()
        with workplace(target) as place:
            labels = _later_wins(self.predictor.picture.shape, answers)
            files = write_structures(case, self.products, place, answers, labels, written)
            outcome = self._note(prompts, answers, files)
            outcome["seconds"] = {
                stage: round(value, 3) for stage, value in {**self.predictor.timings, "write": written.seconds}.items()
            }
            text = json.dumps(outcome, indent=1)
            written.add(lambda path: write_atomic(path, text), place / "note.json", case.note_path(self.products.out))
            written.move()
        for sentence in outcome["remarks"]:
            self.tell(f"{case.image}: {sentence}")
        return outcome

    def _note(
        self, prompts: PromptSet, answers: Sequence[PictureAnswer], files: dict[str, dict[str, str]]
    ) -> dict[str, Any]:
        """Contents of the JSON beside a mask, but for timings."""
        predictor, loaded, picture = self.predictor, self.predictor.loaded, self.predictor.picture
        asked = {
            entry.structure: entry.model_dump(exclude={"structure", "text", "task"}, exclude_defaults=True)
            for entry in prompts.prompts
        }
        empty = [answer.structure for answer in answers if not answer.mask.any()]
        remarks = [*picture.notes, *([f"no pixel found of {', '.join(empty)}"] if empty else [])]
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "image": picture.path.name,
            "image_sha256": image_hash(picture.path),
            "labels": {str(label): answer.structure for label, answer in enumerate(answers, 1)},
            "overlap": "the structure with the higher label wins",
            "prompts": {e.structure: {"origin": origin(e), **asked[e.structure]} for e in prompts.prompts},
            "prompt_space": "pixel",
            "area_pixels": {answer.structure: int(answer.mask.sum()) for answer in answers},
            "estimated_iou": {answer.structure: round(answer.iou, 4) for answer in answers},
            "alternative": {answer.structure: answer.alternative for answer in answers},
            "files": {name: paths for name, paths in files.items() if paths},
            "shape": list(picture.shape),
            "view": {"size": loaded.size, "fit": loaded.fit, "inside": list(predictor.frame.inner)},
            "model": loaded.lineage,
            "licence": loaded.licence,
            "hashes": loaded.hashes,
            "device": str(predictor.device),
            "bf16": predictor.bf16,
            "versions": versions(),
            "remarks": remarks,
        }


def _later_wins(shape: tuple[int, int], answers: Sequence[PictureAnswer]) -> np.ndarray:
    labels = np.zeros(shape, label_dtype(len(answers)))
    for label, answer in enumerate(answers, 1):
        labels[answer.mask] = label
    return labels


def origin(entry: StructurePrompts) -> str:
    """How a structure was asked, for example "user points + user box"; "text" is by the name alone."""
    ways = {USER_POINTS: bool(entry.points), USER_BOX: entry.box is not None}
    return JOIN.join(way for way, used in ways.items() if used) or TEXT
