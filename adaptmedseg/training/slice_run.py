"""One training on slices from a configuration: sets of slices in, one SAM file and its history out."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adaptmedseg.adapters.card import NOT_STATED
from adaptmedseg.adapters.sam_file import save_sam_adapter
from adaptmedseg.checkpoints.fresh import seeded
from adaptmedseg.checkpoints.sam import load_sam, save_sam
from adaptmedseg.checkpoints.store import MODEL_FILE, weights_hash
from adaptmedseg.data.pictures.dataset import SliceDataset, SliceItem
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted_sam import AdaptedSam, PictureModel
from adaptmedseg.models.sam import Sam
from adaptmedseg.training.identity import CASE, settings
from adaptmedseg.training.keeper import CheckpointKeeper
from adaptmedseg.training.observer import Observer
from adaptmedseg.training.position import TrainResult
from adaptmedseg.training.processes import Processes
from adaptmedseg.training.run import last_checkpoint, tell_all
from adaptmedseg.training.run_folder import RunFolder, new_run
from adaptmedseg.training.slice_config import SliceTrainConfig
from adaptmedseg.training.slice_stream import SliceStream, SliceView, view_of
from adaptmedseg.training.stop import StopRequest
from adaptmedseg.training.tracking import run_observers
from adaptmedseg.training.trainer import Trainer

Items = list[tuple[SliceDataset, SliceItem]]


def training_items(config: SliceTrainConfig) -> tuple[Items, list[str]]:
    """The images that a configuration trains on, and the structures. UserError where there are none."""
    paths = ", ".join(config.data.paths)
    if not paths:
        raise UserError("no training data: set data.paths in the configuration or give --data DIR")
    datasets = [SliceDataset.open(path) for path in config.data.paths]
    known = sorted({name for dataset in datasets for name in dataset.structures})
    wanted = list(config.data.structures or known)
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise UserError(f"data.structures: '{unknown[0]}' is in none of the sets; there are {', '.join(known)}")
    items = [(dataset, item) for dataset in datasets for item in dataset.items("train", wanted)]
    if not items:
        raise UserError(f"{paths}: no training image shows any of {', '.join(wanted)}")
    return items, wanted


def run_slice_training(
    config: SliceTrainConfig,
    out: Path,
    device: torch.device,
    *,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    stop: StopRequest | None = None,
) -> tuple[PictureModel, TrainResult]:
    """Train and write OUT/{model.safetensors, config.yaml, history.json}; gives the trained model, averaged weights.

    model.safetensors is a SAM, or, where the configuration has an adapter, that adapter's file.

    Processes, checkpoints, `resume` and errors as in `run.run_training`.
    """
    processes, folder = Processes.join(device), RunFolder(out)
    with ExitStack() as claim:
        processes.of_first(lambda: claim.enter_context(folder.claimed(resume)))
        items, wanted = training_items(config)
        base, card = load_sam(seeded(config.base, config.seed))
        tell = partial(tell_all, observers if processes.is_first else ())
        followers = run_observers(config, folder.logs, out.name, tell)
        own = _identity(config, base, items)
        found = last_checkpoint(folder, processes, own, observers)
        absent = config.adapter is not None and config.adapter.classes
        views = [
            view_of(item, dataset.name, base.config, wanted, config.data.least, absent=absent)
            for dataset, item in items
        ]
        if not any(view.masks for view in views):
            raise UserError(f"data.least: no structure has {config.data.least} pixels in any image; lower it")
        torch.manual_seed(config.seed)
        model = base if config.adapter is None else AdaptedSam(base, config.adapter, wanted)
        if config.cache_embeddings:
            views = with_embeddings(views, model, config, device)
        trainer = Trainer(model, SliceStream(views, base.config, config), config, device)
        if found is not None:
            trainer.restore(found)
        keeper = CheckpointKeeper(folder.checkpoints(config.checkpoint.keep), config.checkpoint, own)
        result = trainer.run(None, [*observers, *followers], keeper, stop)
        model.to("cpu").eval()

        def write() -> None:
            _save(out, config, model, card, items, views, result, folder.logs)
            folder.release(config.checkpoint.extendable)

        processes.of_first(write)
    return model, result


def with_embeddings(
    views: list[SliceView], model: PictureModel, config: SliceTrainConfig, device: torch.device
) -> list[SliceView]:
    """The views with what the frozen encoder sees in them, in memory: in float32 where the training computes in it, in
    float16 otherwise. UserError where an adapter changes the encoder."""
    if isinstance(model, AdaptedSam) and model.changes_encoder:
        raise UserError(
            "cache_embeddings: the adapter changes the image encoder; set it to false or adapt the decoder alone"
        )
    model.to(device).eval()
    found, kept = [], torch.float32 if config.precision == "fp32" else torch.float16
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        for view in views:
            embedding = model.encode(model.normalise(view.image.to(device))[None])[0]
            found.append(replace(view, embedding=embedding.to(kept).cpu()))
    model.train()
    # A tensor of inference takes no part in training: a copy made outside of it does.
    return [replace(view, embedding=None if view.embedding is None else view.embedding.clone()) for view in found]


def _identity(config: SliceTrainConfig, model: Sam, items: Items) -> dict[str, Any]:
    """Everything that decides what a training learns, by dotted keys, as `identity.identity`."""
    keys = settings(config.model_dump(mode="json"))
    keys["base"] = weights_hash(model)
    for dataset, item in items:
        keys[f"{CASE} {dataset.name}/{item.id}"] = item.files
    return keys


def _save(
    out: Path,
    config: SliceTrainConfig,
    model: PictureModel,
    card: dict[str, object],
    items: Items,
    views: list[SliceView],
    result: TrainResult,
    logs: Path,
) -> None:
    before = card.get("training")
    seen = set(before.get("image_sha256", [])) if isinstance(before, dict) else set()
    summary: dict[str, object] = {
        "config": config.name,
        "seed": config.seed,
        "steps": result.steps,
        "minutes": round(result.minutes, 2),
        "structures": sorted({name for view in views for name in view.masks}),
        "modalities": sorted({view.modality for view in views}),
        "cases": [f"{dataset.name}/{item.id}" for dataset, item in items],
        "image_sha256": sorted(seen | {item.image_sha256 for _, item in items}),
        "notes": result.notes,
    }
    names = ", ".join(dict.fromkeys(dataset.name for dataset, _ in items))
    about = {"name": config.name, "trained_on": f"{len(items)} images of {names}", "started_from": card}
    with new_run(out, config, summary, result, logs) as partial_run:
        if isinstance(model, AdaptedSam):
            licence = str(card.get("licence", NOT_STATED))
            base_name = seeded(config.base, config.seed)
            save_sam_adapter(partial_run / MODEL_FILE, model, base_name, config.name, summary, licence)
        else:
            save_sam(partial_run / MODEL_FILE, model, {**about, "training": summary})
