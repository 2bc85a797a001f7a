"""One training from a configuration: data in, one model file and its history out."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import nn

from adaptmedseg.adapters.file import read_card
from adaptmedseg.checkpoints.store import model_path
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.segvol import SMALL, SegVol, Size3
from adaptmedseg.models.unet import ReferenceUNet
from adaptmedseg.training.checkpoint import Checkpoint, read_checkpoint
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.embeddings import embed_views, with_frozen_encoder
from adaptmedseg.training.identity import identity, refuse_other
from adaptmedseg.training.keeper import IDENTITY, CheckpointKeeper
from adaptmedseg.training.observer import Observer
from adaptmedseg.training.position import TrainResult
from adaptmedseg.training.processes import Processes
from adaptmedseg.training.run_folder import RunFolder, save_run
from adaptmedseg.training.sampling import BatchStream
from adaptmedseg.training.start import Start, grow_adapter, load_start, normalised_alike, what_learns
from adaptmedseg.training.stop import StopRequest
from adaptmedseg.training.tracking import run_observers
from adaptmedseg.training.trainer import Trainer, Validate
from adaptmedseg.training.training_set import TrainingSet, fitted, load_training_set, training_cases


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


def run_training(
    config: TrainConfig,
    out: Path,
    device: torch.device,
    *,
    resume: bool = False,
    validate: Validate | None = None,
    observers: Sequence[Observer] = (),
    stop: StopRequest | None = None,
) -> tuple[nn.Module, TrainResult]:
    """Train and write OUT/{model.safetensors, config.yaml, history.json, logs}. Returns the trained model, averaged
    weights.

    model.safetensors is an adapter file, or a base where the configuration has no adapter, or a U-Net. Every process
    that a launcher started makes this call; the first of them writes. With `resume` the training goes on from the last
    checkpoint in OUT.training, or starts where there is none.

    Raises UserError for what cannot be trained, or gone on with, here; TrainingStopped where `stop` was made.
    """
    if validate is None and (config.selection.keep == "best" or config.selection.patience is not None):
        raise UserError("selection: chooses by cases of the split 'val', and the data have none; set keep to last")
    processes, folder = Processes.join(device), RunFolder(out)
    with ExitStack() as claim:
        processes.of_first(lambda: claim.enter_context(folder.claimed(resume)))
        start = load_start(config)
        config = settled(config)
        tell = partial(tell_all, observers if processes.is_first else ())
        followers = run_observers(config, folder.logs, out.name, tell)
        own = identity(config, start, training_cases(config))
        found = last_checkpoint(folder, processes, own, observers)
        data = load_training_set(config, *input_view(config, start.base))
        old = (0, 0) if start.adapter is None else (len(start.adapter.tasks), len(start.adapter.modalities))
        model = build_model(config, start, data)
        freeze_text_tower(model)
        keeper = CheckpointKeeper(folder.checkpoints(config.checkpoint.keep), config.checkpoint, own)
        with what_learns(config, model, old):
            stream = build_stream(config, data)
            if config.data.embeddings is not None:
                frozen = with_frozen_encoder(config, model)
                stream.embeddings = embed_views(stream.views, config, frozen, device, processes, tell)
            trainer = Trainer(model, stream, config, device)
            if found is not None:
                trainer.restore(found)
            result = trainer.run(validate, [*observers, *followers], keeper, stop)
        model = trainer.model.to("cpu").eval()

        def write() -> None:
            save_run(out, config, model, start, data, result, folder.logs)
            folder.release(config.checkpoint.extendable)

        processes.of_first(write)
    return model, result


def tell_all(observers: Sequence[Observer], text: str) -> None:
    for observer in observers:
        observer.noted(text)


def build_stream(config: TrainConfig, data: TrainingSet) -> BatchStream:
    """The batches that a configuration asks for."""
    return BatchStream(
        data.views, config.batch_size, config.structures_per_image, config.prompts, config.augment, config.seed,
        config.data.balance, config.data.zoom_in,
    )  # fmt: skip


def last_checkpoint(
    folder: RunFolder, processes: Processes, own: dict[str, object], observers: Sequence[Observer]
) -> Checkpoint | None:
    """The checkpoint to go on from, the same on all processes; None where there is none.

    UserError where it is that of another training; the observers are told of damaged ones.
    """

    kept: list[Checkpoint] = []

    def step_of_newest() -> int | None:
        found, told = folder.checkpoints().newest()
        for text in told:
            tell_all(observers, f"{text}; going on from the checkpoint before it")
        if found is None:
            return None
        refuse_other(folder.training, found.facts[IDENTITY], own)
        kept.append(found)
        return found.step

    step = processes.of_first(step_of_newest)
    if step is None or kept:
        return kept[0] if kept else None
    return read_checkpoint(folder.checkpoints().path(step))
