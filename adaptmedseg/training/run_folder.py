"""The folder of a run, complete or absent, and beside it the checkpoints of an unfinished one."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from pydantic import BaseModel
from torch import nn

from adaptmedseg.adapters.file import save_adapter
from adaptmedseg.checkpoints.store import MODEL_FILE, save_base
from adaptmedseg.checkpoints.unet_file import save_unet
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.models.unet import ReferenceUNet
from adaptmedseg.training.about import about_adapter
from adaptmedseg.training.checkpoint import CheckpointFolder
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.identity import refuse_other, settings
from adaptmedseg.training.lock import locked
from adaptmedseg.training.position import TrainResult
from adaptmedseg.training.slice_config import SliceTrainConfig
from adaptmedseg.training.start import Start, history_of_growth
from adaptmedseg.training.training_set import TrainingSet

CONFIG, HISTORY, LOGS = "config.yaml", "history.json", "logs"


class RunFolder:
    """`out`, and OUT.training, which holds checkpoints until the run is complete (and after that, where the
    configuration says `extendable`)."""

    def __init__(self, out: Path):
        self.out = out
        self.training = out.with_name(f"{out.name}.training")

    @property
    def logs(self) -> Path:
        """What follows a training that runs; a complete run has a copy."""
        return self.training / LOGS

    @property
    def is_complete(self) -> bool:
        return (self.out / MODEL_FILE).is_file() and (self.out / HISTORY).is_file()

    def checkpoints(self, keep: int = 1) -> CheckpointFolder:
        return CheckpointFolder(self.training, keep)

    def check(self, resume: bool) -> None:
        """UserError where a training can neither start nor go on here."""
        steps = self.checkpoints().steps()
        if not resume:
            check_free(self.out)
            if steps:
                raise UserError(
                    f"{self.training}: holds an unfinished training, at step {steps[-1]}; go on with --resume, remove "
                    "it or choose another --out"
                )
        elif not self.is_complete:
            check_free(self.out)
        elif not steps:
            raise UserError(
                f"{self.out}: is finished and kept no checkpoint to go on from (checkpoint.extendable keeps one); "
                "train anew with another --out"
            )

    def is_finished(self, config: TrainConfig | SliceTrainConfig) -> bool:
        """Whether the run is complete and its budget spent. UserError where it is that of another configuration."""
        if not self.is_complete:
            return False
        try:
            before = yaml.safe_load((self.out / CONFIG).read_text(encoding="utf-8"))
            history = json.loads((self.out / HISTORY).read_text(encoding="utf-8"))
            # Without a row where a smaller budget ended it before the first.
            last = (
                history["rows"][-1] if history["rows"] else {"step": history["summary"]["steps"]} | history["summary"]
            )
            spent = last["step"], last["minutes"]
        except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
            raise UserError(f"{self.out}: is no run of this version; choose another --out") from None
        refuse_other(self.out, settings(before), settings(config.model_dump(mode="json")))
        budget = config.budget
        return spent[0] >= budget.steps if budget.steps else spent[1] >= (budget.minutes or 0)

    @contextmanager
    def claimed(self, resume: bool) -> Iterator[None]:
        """Within the block this process alone trains here. Without a checkpoint nothing is left behind.

        UserError as in `check`, and where another process is at it.
        """
        self.check(resume)
        try:
            self.training.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.training}: cannot be made ({error.strerror}); choose another --out") from None
        with locked(self.training):
            try:
                yield
            finally:
                if not self.checkpoints().steps():
                    shutil.rmtree(self.training, ignore_errors=True)

    def release(self, extendable: bool) -> None:
        """Let go of the checkpoints of a training that is done; the last stays where it is to be extended."""
        if extendable:
            self.checkpoints().prune()
        else:
            self.checkpoints().remove_all()


def check_free(out: Path) -> None:
    """UserError where a new folder can't be made at `out`: said before the work, not after it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a new folder for --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: holds another run; choose a new --out or remove it")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{out}: cannot be made in {parent}; choose another --out")


def save_run(
    out: Path, config: TrainConfig, model: nn.Module, start: Start, data: TrainingSet, result: TrainResult, logs: Path
) -> None:
    """Write a run's files into OUT.partial, which is then renamed: a run folder is complete or not there.

    `logs` is the folder of what followed the training, which is copied.
    """
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
        "zoom_in": config.data.zoom_in,
        "notes": result.notes,
    }
    if start.card_of_adapter is not None:
        summary |= history_of_growth(summary, start.card_of_adapter)
    with new_run(out, config, summary, result, logs) as partial:
        _save_model(partial / MODEL_FILE, config, model, start, data, summary)


@contextmanager
def new_run(
    out: Path, config: BaseModel, summary: dict[str, object], result: TrainResult, logs: Path
) -> Iterator[Path]:
    """OUT.partial with a run's configuration, history and logs, for its model; it gets its name when the block ends."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        (partial / CONFIG).write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        (partial / HISTORY).write_text(
            json.dumps({"summary": summary, "rows": result.history}, indent=1), encoding="utf-8"
        )
        shutil.copytree(logs, partial / LOGS, symlinks=True)
        yield partial
        _replace(partial, out)
    except OSError as error:
        reason = "its logs cannot be copied" if isinstance(error, shutil.Error) else error.strerror or str(error)
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


def _replace(partial: Path, out: Path) -> None:
    """Give a complete folder its name, in place of an empty one or of the run that it extends."""
    before = out.with_name(f"{out.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if out.exists():
        os.replace(out, before)
    os.replace(partial, out)
    shutil.rmtree(before, ignore_errors=True)
