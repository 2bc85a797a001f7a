"""`adaptmedseg predict` on pictures: masks by points and boxes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from adaptmedseg.cli.cases import run_cases, tell
from adaptmedseg.cli.question import FreeNames, Question
from adaptmedseg.errors import UserError
from adaptmedseg.inference.case_note import Outcome
from adaptmedseg.inference.cases import Products
from adaptmedseg.inference.naming import Case
from adaptmedseg.inference.picture_cases import PictureRunner, find_pictures
from adaptmedseg.inference.pictures import PicturePredictor
from adaptmedseg.inference.prompt_file import text_prompt_set


def refuse_volume_options(path: Path, options: Mapping[str, object]) -> None:
    """UserError where something was given for one of the options, which belong to volumes."""
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise UserError(f"{given[0]}: is for volumes, and {path} is or holds pictures; leave it out")


def predict_pictures(
    path: Path,
    model: str,
    products: Products,
    question: Question,
    *,
    exact: bool,
    device: str,
) -> None:
    """Segment the pictures of a path."""
    if question.space not in (None, "voxel"):
        raise UserError(f"--space {question.space}: a picture has pixels alone; leave it out")
    question, names = replace(question, default_space="voxel"), FreeNames()
    found = find_pictures(path)
    question.check(found.cases)
    asked = question.common(names, found.cases)
    predictor = PicturePredictor.load(model, device, exact=exact)
    if asked is None and question.prompts is None:
        if not predictor.loaded.classes:
            raise UserError(f"{path}: nothing is asked; give --point, --box or --prompts")
        asked = text_prompt_set(predictor.loaded.classes)
        tell(f"automatic mode: {', '.join(asked.structures)}")
    for case in found.cases:
        products.check(case, question.file_of(case))
    runner = PictureRunner(predictor, products, tell)

    def run(case: Case) -> Outcome:
        prompts = asked or question.own(names, case)
        assert prompts is not None  # a folder of prompts has a file for each, or `own` says which is missing
        return runner.run(case, prompts)

    run_cases(found.cases, products, run)
