"""`adaptmedseg predict --support`: a new task from labelled images, without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adaptmedseg.cli.cases import run_cases, tell
from adaptmedseg.cli.common import bar, split_names
from adaptmedseg.cli.question import FreeNames, Question
from adaptmedseg.cli.support_folder import read_supports
from adaptmedseg.data.pictures.dataset import Axis
from adaptmedseg.data.volume import read_image, volume_suffix
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation import wording
from adaptmedseg.inference.case_note import Outcome
from adaptmedseg.inference.cases import Products
from adaptmedseg.inference.naming import Case, Found
from adaptmedseg.inference.picture_cases import find_pictures
from adaptmedseg.inference.picture_loading import load_picture_model
from adaptmedseg.inference.support.cases import (
    PreparedVolume,
    Shared,
    SupportPictureRunner,
    SupportVolumeRunner,
    with_own_slices,
)
from adaptmedseg.inference.support.segmenter import SupportSegmenter
from adaptmedseg.inference.support.supports import SupportSet
from adaptmedseg.inference.support.volumes import SlicedVolume
from adaptmedseg.models.adapted_sam import PictureModel


class SupportCommand:
    """What `predict --support` shares between pictures and volumes: model, supports, products.

    `structures` as the option has it: the names that are looked for; for label maps without names, what the values 1,
    2, ... are called.
    """

    def __init__(
        self,
        support: Path,
        model: str,
        products: Products,
        structures: str | None,
        *,
        shots: int | None,
        exact: bool,
        device: str,
    ):
        self.support, self.products, self.shots, self.exact = support, products, shots, exact
        self.names = FreeNames().names(split_names(structures) or []) if structures is not None else []
        self.loaded = load_picture_model(model)
        if not isinstance(self.loaded.model, PictureModel):
            raise UserError(
                f"--model {model}: support sets are made for SAM's own encoder and decoder; give such a model"
            )
        self.model = self.loaded.model
        self.device = pick_device(device)
        self.shared = Shared(self.loaded, products, support.name, tell)

    def segmenter(self, supports: SupportSet, structures: list[str] | None) -> SupportSegmenter:
        """Encode the supports and calibrate on them, with a bar, and tell what Dice is to be expected."""
        with bar("looking at the supports") as progress:
            made = SupportSegmenter(
                self.model, supports, self.device, structures, bf16=not self.exact, progress=progress
            )
        for name, task in made.tasks.items():
            count = len(task.supports)
            basis = "left-out supports, which half of the calibration has seen" if count > 1 else "changed copies of it"
            tell(f"{name}: {wording.count(count, 'support')}, expected Dice {task.expected_dice:.2f} (of {basis})")
        return made

    def from_folder(self) -> tuple[SupportSegmenter, Axis]:
        """A segmenter by the supports of a folder, and the axis across which they were cut where they are slices."""
        read = read_supports(self.support, self.names, self.loaded, self.device, bf16=not self.exact)
        supports = read.supports if self.shots is None else read.supports.drawn(self.shots, np.random.default_rng(0))
        wanted = [name for name in self.names if name in read.structures] if self.names else None
        missing = [name for name in self.names if name not in read.structures]
        if missing:
            supports.showing(missing[0])  # says what there is instead
        return self.segmenter(supports, wanted), read.axis


def predict_pictures_by_support(command: SupportCommand, path: Path, question: Question) -> None:
    """Segment the pictures of a path; a user's own points and boxes go before prompts from the supports."""
    found = find_pictures(path)
    question.check(found.cases)
    names = FreeNames()
    asked = question.common(names, found.cases)
    for case in found.cases:
        command.products.check(case, question.file_of(case))
    segmenter, _ = command.from_folder()
    runner = SupportPictureRunner(command.shared, segmenter)

    def run(case: Case) -> Outcome:
        return runner.run(case, asked or question.own(names, case))

    run_cases(found.cases, command.products, run)


def predict_volumes_by_support(command: SupportCommand, found: Found) -> None:
    """Segment volumes slice by slice, by a folder of supports or by a few drawn slices of the one volume."""
    for note in found.notes:
        tell(note)
    for case in found.cases:
        command.products.check(case, command.support)
    if volume_suffix(command.support) is not None:
        if command.shots is not None:
            raise UserError(
                f"--shots {command.shots}: draws from a folder of supports, and {command.support} holds slices drawn "
                "by hand, of which all count; leave it out"
            )
        if len(found.cases) > 1:
            raise UserError(
                f"--support {command.support}: holds slices of one image, and there are {len(found.cases)}; give that "
                "image alone, or a folder of supports"
            )

        def prepare(case: Case) -> PreparedVolume:
            return with_own_slices(case, command.support, command.names, lambda s: command.segmenter(s, None))

    else:
        segmenter, axis = command.from_folder()

        def prepare(case: Case) -> PreparedVolume:
            return PreparedVolume(SlicedVolume.of(read_image(case.image, case.channel, case.series), axis), segmenter)

    run_cases(found.cases, command.products, SupportVolumeRunner(command.shared, prepare).run)
