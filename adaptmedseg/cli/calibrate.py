"""`adaptmedseg calibrate`: from a model's own doubts to an estimate of Dice, fitted on cases with truth."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from adaptmedseg.checkpoints.store import model_path
from adaptmedseg.cli.common import Device, Seed, bar
from adaptmedseg.cli.evaluate import wanted_structures
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.confidence import Judged, calibrated_apart, judge
from adaptmedseg.evaluation.correlation import rank_correlation
from adaptmedseg.evaluation.study import StudyMethod, check_study, study_data, study_structures
from adaptmedseg.evaluation.wording import change, change_interval, count
from adaptmedseg.inference.calibration import calibration_path, fit_calibration, write_calibration
from adaptmedseg.inference.loading import LoadedModel, load_model


def calibrate(
    model: Annotated[str, typer.Argument(help="Known name, file or run folder.")],
    data: Annotated[list[Path], typer.Option(help="Prepared data set(s) with cases that no training saw.")],
    split: Annotated[str, typer.Option(help="Which cases: val or test.")] = "val",
    fold: Annotated[int | None, typer.Option(help="The test cases of this fold instead of a split.", min=0)] = None,
    structures: Annotated[str | None, typer.Option(help="Names separated by commas; all by default.")] = None,
    base: Annotated[str | None, typer.Option(help="Base of an adapter, where its file has moved.")] = None,
    out: Annotated[Path | None, typer.Option(help="The calibration's file; beside the model by default.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Fit what `predict --confidence` estimates: Dice from how far a model keeps its answer on a changed image.

    \b
    Example:
      adaptmedseg calibrate runs/my_mri --data prepared/my_mri --split val
    """
    loaded = load_model(model, base)
    judged = judge_sets(loaded, "model", data, split, fold, structures, str(pick_device(device)))
    target = out or calibration_path(model_path(model))
    try:
        fitted = fit_calibration([one.evidence for one in judged], [one.dice for one in judged], loaded.hashes)
    except ValueError as error:
        raise UserError(f"{data[0]}: {error}; give more cases with --data, --split or --fold") from None
    write_calibration(target, fitted)
    for line in ranking_report(judged, seed):
        print(line)
    print(target)


def judge_sets(
    loaded: LoadedModel, name: str, data: list[Path], split: str, fold: int | None, structures: str | None, device: str
) -> list[Judged]:
    """Evidence and true Dice of a model on unseen cases. UserError where there are none or some were seen."""
    sources = [study_data(path, split, fold) for path in data]
    wanted = wanted_structures(structures, sources)
    method = StudyMethod(name, loaded)
    check_study([method], sources, wanted)
    found: list[Judged] = []
    for source in sources:
        names = study_structures(method, source.dataset, wanted)
        with bar(f"asking {source.dataset.name}") as progress:
            found += judge(
                loaded, source.cases, names, source.dataset.registry.mirror, pick_device(device), group=name,
                progress=progress,
            )  # fmt: skip
    if not found:
        raise UserError(f"{data[0]}: no case annotates a structure to judge; choose others with --structures")
    return found


def ranking_report(judged: list[Judged], seed: int = 0) -> list[str]:
    """How well confidence ranks masks, and how far estimates by a calibration from other cases are off."""
    rng = np.random.default_rng(seed)
    truth, patients = [one.dice for one in judged], [one.patient for one in judged]
    value, interval = rank_correlation([one.evidence.score for one in judged], truth, patients, rng)
    cases = count(len({(one.group, one.case) for one in judged}), "case")
    lines = [
        f"{count(len(judged), 'mask')} of {cases}: Spearman of confidence and true Dice {change(value)} "
        f"(95 % interval {change_interval(interval)}, patients resampled)"
    ]
    try:
        apart = calibrated_apart(judged)
    except ValueError as error:
        return [*lines, f"no estimate by a calibration from other cases: {error}"]
    errors = [abs((one.estimate or 0.0) - one.dice) for one in apart]
    guess = np.mean([abs(np.mean(truth) - value) for value in truth])
    lines.append(
        f"estimated Dice, each by a calibration from other cases: off by {np.mean(errors):.3f} on average "
        f"(always saying the mean: {guess:.3f})"
    )
    worst = sorted(judged, key=lambda one: one.evidence.score)[:5]
    lines.append("to review first: " + ", ".join(f"{one.case} {one.structure} (Dice {one.dice:.2f})" for one in worst))
    return lines
