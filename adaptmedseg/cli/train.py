"""`adaptmedseg train`: one training from a configuration."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from torch import nn

from adaptmedseg.adapters.counts import count_parameters
from adaptmedseg.checkpoints.store import MODEL_FILE
from adaptmedseg.cli.common import Device, bar, config_path, console, parse_overrides
from adaptmedseg.cli.live import live_view
from adaptmedseg.data.leaks import refuse_leaks
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.device import pick_device
from adaptmedseg.evaluation.evaluate import Asked, evaluate_cases, mean_dice
from adaptmedseg.evaluation.records import Record
from adaptmedseg.inference.loading import AnyModel
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapted_sam import AdaptedSam
from adaptmedseg.models.segvol import SMALL, SegVol
from adaptmedseg.models.unet import ReferenceUNet
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.config_file import load_config, named_model
from adaptmedseg.training.config_lines import told_with_line
from adaptmedseg.training.position import TrainResult
from adaptmedseg.training.processes import Processes
from adaptmedseg.training.run import run_training, settled
from adaptmedseg.training.run_folder import RunFolder
from adaptmedseg.training.slice_config import SliceTrainConfig
from adaptmedseg.training.slice_run import run_slice_training
from adaptmedseg.training.stop import StopRequest
from adaptmedseg.training.trainer import Validate


def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped one (such as prostate).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as budget.minutes=5.")] = None,
    out: Annotated[Path, typer.Option(help="New folder for the run.")] = Path("runs/train"),
    data: Annotated[list[Path], typer.Option(help="Prepared data set(s); replaces data.paths.")] = [],  # noqa: B006
    base: Annotated[str | None, typer.Option(help="Base to start from: small, a file or a run; replaces base.")] = None,
    fold: Annotated[int | None, typer.Option(help="Leave this fold out; replaces data.fold.", min=0)] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces seed.", min=0)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished training of --out; start where there is none.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train an adapter (or, where the configuration says so, a whole base or the reference U-Net).

    \b
    Examples:
      adaptmedseg train adapt --data prepared/my_mri --out runs/my_mri
      adaptmedseg train adapt --data prepared/my_mri --out runs/long budget.minutes=30
      adaptmedseg train adapt --data prepared/my_mri --out runs/long budget.minutes=30 --resume
      adaptmedseg train grow --data prepared/more --out runs/more grow.adapter=runs/my_mri 'grow.tasks={uterus: fresh}'
      adaptmedseg train prostate --data prepared/promise12 --fold 0 --out runs/fold0
      adaptmedseg train sam_small --data slices/retina --out runs/retina budget.minutes=5
    """
    settings = read_settings(config, overrides, data, base, fold, seed)
    chosen = pick_device(device)
    with told_with_line(config_path(config), type(settings), given_beside(overrides, data, base, fold, seed)):
        if isinstance(settings, SliceTrainConfig):
            train_slices(settings, out, chosen, resume=resume)
        else:
            train_volumes(settings, out, chosen, resume=resume)


def train_volumes(settings: TrainConfig, out: Path, device: torch.device, *, resume: bool) -> None:
    """Train on volumes, in every process that a launcher started."""
    processes, folder = Processes.join(device), RunFolder(out)
    processes.of_first(lambda: folder.check(resume) if not (resume and folder.is_complete) else None)
    processes.of_first(lambda: look_for_leaks(settings))
    settings = settled(settings)
    if resume and folder.is_finished(settings):
        print(f"{out}: is finished")
        return
    with (
        StopRequest().by_signal() as stop,
        live_view(f"training {settings.name}", settings.batch_size, device) as shown,
    ):
        validate = validator(settings, processes)
        if settings.validations and validate is None and processes.is_first:
            shown.noted("validations: no case of the split 'val' here (sets with folds have none); none is scored")
        model, result = run_training(
            settings, out, device, resume=resume, validate=validate, observers=[shown], stop=stop
        )
    if processes.is_first:
        tell(out, model, result)


def train_slices(settings: SliceTrainConfig, out: Path, device: torch.device, *, resume: bool) -> None:
    """The same for a SAM, on sets of slices."""
    processes, folder = Processes.join(device), RunFolder(out)
    processes.of_first(lambda: folder.check(resume) if not (resume and folder.is_complete) else None)
    if resume and folder.is_finished(settings):
        print(f"{out}: is finished")
        return
    with (
        StopRequest().by_signal() as stop,
        live_view(f"training {settings.name}", settings.batch_size, device) as shown,
    ):
        model, result = run_slice_training(settings, out, device, resume=resume, observers=[shown], stop=stop)
    if processes.is_first:
        tell(out, model, result)


def read_settings(
    config: str, overrides: list[str] | None, data: list[Path], base: str | None, fold: int | None, seed: int | None
) -> TrainConfig | SliceTrainConfig:
    """The configuration that the command line asks for. UserError where there is none or it is wrong."""
    path, changes = config_path(config), given_beside(overrides, data, base, fold, seed)
    if named_model(path) == "sam":
        return load_config(path, SliceTrainConfig, changes)
    return load_config(path, TrainConfig, changes)


def given_beside(
    overrides: list[str] | None, data: list[Path], base: str | None, fold: int | None, seed: int | None
) -> dict[str, object]:
    """The settings of the command line, by dotted key: they replace those of the file."""
    given = {"data.paths": [str(path) for path in data] or None, "base": base, "data.fold": fold, "seed": seed}
    return parse_overrides(overrides or []) | {key: value for key, value in given.items() if value is not None}


def look_for_leaks(settings: TrainConfig) -> None:
    """UserError where two of the data sets hold one patient on both sides."""
    if len(settings.data.paths) > 1:
        datasets = [PreparedDataset.open(path) for path in settings.data.paths]
        with bar("looking for leaks") as compared:
            refuse_leaks(datasets, settings.data.fold, compared)


def tell(out: Path, model: nn.Module, result: TrainResult) -> None:
    """Print what a training did."""
    for note in result.notes:
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)
    if isinstance(model, AdaptedSegVol | AdaptedSam):
        for count in count_parameters(model.trained_tensors()):
            print(f"{count.kind} in {count.part}: {count.parameters:,} parameters")
    size = (out / MODEL_FILE).stat().st_size / 1e6
    print(
        f"{out}: {result.steps} steps in {result.minutes:.1f} min, {result.trained:,} trained parameters, "
        f"file {size:.1f} MB"
    )


def can_segment(model: nn.Module, structure: str) -> bool:
    """Whether a model can be asked for a structure: a U-Net only for those that it was built for."""
    return not isinstance(model, ReferenceUNet) or structure in model.structures


def validator(config: TrainConfig, processes: Processes) -> Validate | None:
    """Scores of the 'val' cases of the training data, asked by name alone; None where there are none.

    The processes share the cases.
    """
    if not config.validations or not config.data.paths or config.data.fold is not None:
        return None
    datasets = [PreparedDataset.open(path) for path in config.data.paths]
    if not any(dataset.cases("val") for dataset in datasets):
        return None

    def validate(model: nn.Module) -> dict[str, float]:
        base = model.base if isinstance(model, AdaptedSegVol) else model
        view = base.config if isinstance(base, SegVol) else SMALL
        training = model.training
        asked_model = cast(AnyModel, model.eval())  # run_training builds nothing else
        device = next(model.parameters()).device
        segmenter = CropSegmenter(asked_model, view.spatial_size, view.resize, device)
        records: list[Record] = []
        for dataset in datasets:
            asked = Asked(config.name, dataset.name, normalisation_of=lambda modality: config.data.normalise)
            structures = [name for name in config.data.structures or dataset.structures if can_segment(model, name)]
            own = dataset.cases("val")[processes.rank :: processes.count]
            records += evaluate_cases(segmenter, own, structures, asked)
        model.train(training)
        return validation_scores([record for part in processes.gathered(records) for record in part])

    return validate


def validation_scores(records: Sequence[Record]) -> dict[str, float]:
    """The metrics that a configuration's `selection` knows, and the Dice of every structure in every modality."""
    of_modality = {
        name: [record for record in records if record.modality == name]
        for name in sorted({record.modality for record in records})
    }
    of_task = {
        f"val_dice {modality}, {structure}": mean_dice([r for r in scores if r.structure == structure])
        for modality, scores in of_modality.items()
        for structure in sorted({r.structure for r in scores})
    }
    scored = [value for value in of_task.values() if not math.isnan(value)]
    means = [value for value in map(mean_dice, of_modality.values()) if not math.isnan(value)]
    return {
        "val_dice": mean_dice(records),
        "val_dice_modalities": sum(means) / len(means) if means else math.nan,
        "val_dice_worst": min(scored, default=math.nan),
        **of_task,
    }
