"""One training from a configuration: data in, one model file and its history out."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import yaml
from torch import nn

from adaptmedseg.adapters.file import read_card, save_adapter
from adaptmedseg.checkpoints.store import MODEL_FILE, model_path, save_base
from adaptmedseg.checkpoints.unet_file import save_unet
from adaptmedseg.data.normalise import fit_landmarks
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.segvol import SMALL, SegVol, Size3
from adaptmedseg.models.unet import ReferenceUNet
from adaptmedseg.training.about import about_adapter, median_spacing, stated_licences
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.sampling import BatchStream
from adaptmedseg.training.start import Start, grow_adapter, history_of_growth, load_start, normalised_alike, what_learns
from adaptmedseg.training.trainer import Progress, Trainer, TrainResult, Validate
from adaptmedseg.training.views import LazyView, View, ViewMaker


@dataclass(frozen=True)
class TrainingSet:
    """Views in memory and what they teach. `cases` are 'data set/case', `image_hashes` their source files' SHA-256:
    evaluation refuses to score a model on an image that it was trained on. `spacing_mm` is the median over the images
    (d, h, w), `licences` what each data set states."""

    views: list[View]
    structures: list[str]
    modalities: list[str]
    cases: list[str]
    image_hashes: list[str]
    spacing_mm: tuple[float, float, float]
    licences: dict[str, str]


def training_cases(config: TrainConfig) -> list[tuple[PreparedDataset, PreparedCase]]:
    """The cases that a configuration trains on. UserError where there are none."""
    if not config.data.paths:
        raise UserError("no training data: set data.paths in the configuration or give --data DIR")
    cases: list[tuple[PreparedDataset, PreparedCase]] = []
    for path in config.data.paths:
        dataset = PreparedDataset.open(path)
        fold = config.data.fold
        chosen = dataset.cases("train") if fold is None else dataset.fold(fold)[0]
        if config.data.patients is not None:
            chosen = drawn_patients(chosen, config.data.patients, config.seed, path)
        cases.extend((dataset, case) for case in chosen)
    if not cases:
        raise UserError(f"{', '.join(config.data.paths)}: no training case; prepare the data with a smaller test share")
    return cases


def drawn_patients(cases: Sequence[PreparedCase], count: int, seed: int, path: str) -> list[PreparedCase]:
    """Cases of `count` patients, drawn by seed from their names alone, in the cases' order. UserError for too few."""
    names = {case.patient for case in cases}
    if count > len(names):
        raise UserError(f"{path}: data.patients is {count}, and there are {len(names)} patients to train on; lower it")
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())[:count]
    return [case for case in cases if case.patient in drawn]


def load_training_set(config: TrainConfig, size: Size3, resize) -> TrainingSet:
    """Cache the views of all training cases; structures in a stable order."""
    cases = training_cases(config)
    registries = {id(dataset): dataset.registry for dataset, _ in cases}
    wanted = config.data.structures
    if wanted is not None:
        known = {name for dataset, _ in cases for name in dataset.structures}
        unknown = sorted(set(wanted) - known)
        if unknown:
            raise UserError(
                f"data.structures: '{unknown[0]}' is in none of the data sets; there are {', '.join(sorted(known))}"
            )
    make = ViewMaker(size, resize, wanted, config.data.normalise)
    views: list[View] = []
    room = config.data.cache_gib * 2**30
    for dataset, case in cases:
        view, more = _view(make, case, registries[id(dataset)].mirror, dataset.name, config, room > 0)
        views.append(view)
        room -= more
    # A flip turns one side's structure into the other's, which then is a task of its own.
    structures = sorted({name for view in views for pair in view.mirrored.items() for name in pair})
    if not structures:
        raise UserError(
            f"{', '.join(config.data.paths)}: no annotated structure in any training case; check the labels"
        )
    modalities = sorted({view.modality for view in views})
    return TrainingSet(
        views,
        structures,
        modalities,
        [f"{dataset.name}/{case.id}" for dataset, case in cases],
        [case.sources["image"]["sha256"] for _, case in cases],
        median_spacing([case for _, case in cases]),
        stated_licences([dataset for dataset, _ in cases]),
    )


def _view(
    make: ViewMaker, case: PreparedCase, mirror: Callable[[str], str], dataset: str, config: TrainConfig, keep: bool
) -> tuple[View, int]:
    """The view of a case, kept in memory or made anew each time, and the bytes that it takes."""
    view = make(case, mirror, dataset)
    if config.data.zoom_in:
        windows = make.windows(case, config.seed)
        mirrored = view.mirrored | {name: mirror(name) for name in windows.places}
        view = replace(view, windows=windows, mirrored=mirrored)
    if keep:
        return view, view.image.nbytes + view.labels.nbytes
    remake = partial(make, case, mirror, dataset)
    return LazyView(view.modality, view.bits, view.mirrored, remake, dataset, view.windows), 0


def fitted(config: TrainConfig) -> TrainConfig:
    """The configuration with Nyúl's landmarks, fitted on its training cases where they are asked for and not given."""
    normalise = config.data.normalise
    if normalise.is_fitted:
        return config
    landmarks = fit_landmarks(case.statistics for _, case in training_cases(config))
    chosen = normalise.model_copy(update={"landmarks": landmarks})
    return config.model_copy(update={"data": config.data.model_copy(update={"normalise": chosen})})


def settled(config: TrainConfig) -> TrainConfig:
    """The configuration as it is trained: normalised as the adapter that grows was, or with `fitted` landmarks."""
    if config.grow is None:
        return fitted(config)
    return normalised_alike(config, read_card(model_path(config.grow.adapter)))


def input_view(config: TrainConfig, base: SegVol | None) -> tuple[Size3, str]:
    """Input size and way of resizing; the U-Net is given what the small model gets."""
    model_config = base.config if base is not None else SMALL
    return model_config.spatial_size, model_config.resize


def build_model(config: TrainConfig, start: Start, data: TrainingSet) -> nn.Module:
    """The model a configuration trains, its trainable parameters marked."""
    torch.manual_seed(config.seed)
    if start.base is None:
        return ReferenceUNet(data.structures, SMALL.spatial_size)
    if start.adapter is not None and config.grow is not None:
        grow_adapter(config.grow, start.adapter, data.structures, data.modalities)
        return start.adapter
    if config.adapter is None:
        return start.base
    return AdaptedSegVol(start.base, config.adapter, data.structures, data.modalities, config.name)


def freeze_text_tower(model: nn.Module) -> None:
    """CLIP's tower stays frozen when all weights of a base are trained."""
    for name, parameter in model.named_parameters():
        if "clip_text_model" in name:
            parameter.requires_grad_(False)


def check_free(out: Path) -> None:
    """UserError where a new folder can't be made at `out`: said before the work, not after it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a new folder for --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: holds another run; choose a new --out or remove it")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{out}: cannot be made in {parent}; choose another --out")


def run_training(
    config: TrainConfig,
    out: Path,
    device: torch.device,
    *,
    validate: Validate | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, TrainResult]:
    """Train and write OUT/{model.safetensors, config.yaml, history.json}. Returns the trained model, averaged weights.

    model.safetensors is an adapter file, or a base where the configuration has no adapter, or a U-Net.
    """
    check_free(out)
    start = load_start(config)
    config = settled(config)
    size, resize = input_view(config, start.base)
    data = load_training_set(config, size, resize)
    old = (0, 0) if start.adapter is None else (len(start.adapter.tasks), len(start.adapter.modalities))
    model = build_model(config, start, data)
    freeze_text_tower(model)
    stream = BatchStream(
        data.views, config.batch_size, config.structures_per_image, config.prompts, config.augment, config.seed,
        config.data.balance, config.data.zoom_in,
    )  # fmt: skip
    with what_learns(config, model, old):
        result = Trainer(model, stream, config, device).run(validate, config.validations, progress)
    model.to("cpu").eval()
    save_run(out, config, model, start, data, result)
    return model, result


def save_run(
    out: Path, config: TrainConfig, model: nn.Module, start: Start, data: TrainingSet, result: TrainResult
) -> None:
    """Write a run's files into OUT.partial, which is then renamed: a run folder is complete or not there."""
    summary: dict[str, object] = {
        "config": config.name,
        "seed": config.seed,
        "steps": result.steps,
        "minutes": round(result.minutes, 2),
        "structures": data.structures,
        "modalities": data.modalities,
        "cases": data.cases,
        "image_sha256": data.image_hashes,
        "normalisation": config.data.normalise.model_dump(mode="json"),
        "notes": result.notes,
    }
    if start.card_of_adapter is not None:
        summary |= history_of_growth(summary, start.card_of_adapter)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        (partial / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        (partial / "history.json").write_text(json.dumps({"summary": summary, "rows": result.history}, indent=1))
        _save_model(partial / MODEL_FILE, config, model, start, data, summary)
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{out}: cannot be written ({reason}); free some space or choose another --out") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save_model(
    path: Path, config: TrainConfig, model: nn.Module, start: Start, data: TrainingSet, summary: dict[str, object]
) -> None:
    if isinstance(model, AdaptedSegVol):
        before = "" if start.card_of_adapter is None else start.card_of_adapter.licence
        about = about_adapter(config, start.card, data.licences, data.spacing_mm, start.base_name, before)
        save_adapter(path, model, start.base_name, summary, about)
    elif isinstance(model, SegVol):
        save_base(path, model, {"name": config.name, "started_from": start.card, "training": summary})
    elif isinstance(model, ReferenceUNet):
        save_unet(path, model, summary)
