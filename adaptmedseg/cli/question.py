"""What a user asks of `adaptmedseg predict`, of volumes or of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adaptmedseg.cli.common import split_names
from adaptmedseg.data.pictures.read import is_picture, picture_stem
from adaptmedseg.data.volume import volume_stem
from adaptmedseg.errors import UserError
from adaptmedseg.inference.naming import Case
from adaptmedseg.inference.prompt_file import PromptSet, read_prompts
from adaptmedseg.inference.prompt_options import prompts_from_options


class Names(Protocol):
    """Who knows what structures are called; UserError for names that can't be used."""

    def name(self, structure_name: str) -> str: ...
    def names(self, structures: Sequence[str]) -> list[str]: ...


class FreeNames:
    """Any name is a name: models of pictures are asked by places alone, and pictures show anything."""

    def name(self, structure_name: str) -> str:
        name = " ".join(structure_name.split())
        if not name:
            raise UserError("a structure has no name; give it one")
        return name

    def names(self, structures: Sequence[str]) -> list[str]:
        return [self.name(name) for name in structures]


@dataclass(frozen=True)
class Question:
    """What the user asks, as the options have it."""

    structures: str | None
    prompts: Path | None
    points: list[str]
    boxes: list[str]
    space: str | None
    default_space: str = "world"

    def check(self, cases: list[Case]) -> None:
        """UserError where options exclude each other or coordinates would be meant for several images."""
        options = {
            "--structures": self.structures,
            "--point": self.points,
            "--box": self.boxes,
            "--space": self.space,
        }
        beside = [name for name, given in options.items() if given]
        if self.prompts is not None and beside:
            raise UserError(f"--prompts {self.prompts}: names all that is asked; leave out {' and '.join(beside)}")
        if len(cases) > 1 and (self.points or self.boxes):
            raise UserError(
                f"--point and --box belong to one image, and there are {len(cases)}; give --prompts FOLDER with one "
                "NAME.json an image"
            )

    def common(self, known: Names, cases: list[Case]) -> PromptSet | None:
        """What is asked of every image; None for the automatic mode, and where each image has a file of its own."""
        if self.prompts is not None:
            if self.prompts.is_dir():
                return None
            prompts = read_prompts(self.prompts, known.name)
            if prompts.located and len(cases) > 1:
                raise UserError(
                    f"{self.prompts}: its points and boxes belong to one image, and there are {len(cases)}; give "
                    "--prompts FOLDER with one NAME.json an image"
                )
            return prompts
        names = [] if self.structures is None else known.names(split_names(self.structures) or [])
        if not names and not self.points and not self.boxes:
            return None
        return prompts_from_options(names, self.points, self.boxes, self.space or self.default_space, known.name)

    def own(self, known: Names, case: Case) -> PromptSet | None:
        """The prompts of one image from a folder of files."""
        if self.prompts is None or not self.prompts.is_dir():
            return None
        path = self.file_of(case)
        if path is None:
            wanted = self.prompts / f"{case.name}.json"
            raise UserError(f"{wanted}: is missing; each image needs its file of prompts in this folder")
        return read_prompts(path, known.name)

    def file_of(self, case: Case) -> Path | None:
        """The file that holds an image's prompts; None where there is none."""
        if self.prompts is None or not self.prompts.is_dir():
            return self.prompts
        known = [self.prompts / f"{name}.json" for name in (case.name, Path(case.name).name, _stem(case.image))]
        return next((path for path in known if path.exists()), None)


def _stem(path: Path) -> str:
    return picture_stem(path) if is_picture(path) else volume_stem(path)
