"""Trackers (TensorBoard, W&B, MLflow) as observers of a training, over Accelerate's."""

import importlib
import importlib.util
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from adaptmedseg.data.download import OFFLINE
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.identity import flat
from adaptmedseg.training.observer import Observer
from adaptmedseg.training.rows import Row, RowFiles, Throughput
from adaptmedseg.training.slice_config import SliceTrainConfig

ERRORS = {"wandb": ("wandb.errors", "Error"), "mlflow": ("mlflow.exceptions", "MlflowException")}
RUN_ID = "run-id.txt"
Tell = Callable[[str], None]


def run_observers(config: TrainConfig | SliceTrainConfig, folder: Path, name: str, tell: Tell) -> list[Observer]:
    """What follows every training into `folder`: files of rows, and the trackers that the configuration names."""
    trackers = (tensorboard(folder), wandb(config, folder, name), mlflow(config, folder, name))
    chosen = [tracker for tracker in trackers if getattr(config.tracking, tracker.name)]
    return [RowFiles(folder, config.batch_size), *(TrackerObserver(tracker, config, tell) for tracker in chosen)]


@dataclass(frozen=True)
class Tracker:
    """A tracker by its key in the configuration, which is also its package's name. `start` makes and starts one of
    Accelerate's, for a training that goes on after a step."""

    name: str
    start: Callable[[int], GeneralTracker]


def tensorboard(folder: Path) -> Tracker:
    """Event files in FOLDER/tensorboard; of what was seen after a checkpoint, TensorBoard shows the newer rows."""

    def start(step: int) -> GeneralTracker:
        tracker = TensorBoardTracker("tensorboard", logging_dir=folder, purge_step=step + 1)
        tracker.start()
        return tracker

    return Tracker("tensorboard", start)


def wandb(config: TrainConfig | SliceTrainConfig, folder: Path, name: str) -> Tracker:
    """A run at W&B, or, with ADAPTMEDSEG_OFFLINE set, its files below FOLDER/wandb; gone on with under its own id."""

    def start(step: int) -> GeneralTracker:
        place = folder / "wandb"
        place.mkdir(parents=True, exist_ok=True)
        if step == 0 or not (place / RUN_ID).exists():
            (place / RUN_ID).write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        run = {"id": (place / RUN_ID).read_text(encoding="utf-8"), "resume": "allow"}
        mode = {"mode": "offline"} if os.environ.get(OFFLINE) else {}
        tracker = WandBTracker(config.tracking.project, name=name, dir=str(place), **run, **mode)
        tracker.start()
        return tracker

    return Tracker("wandb", start)


def mlflow(config: TrainConfig | SliceTrainConfig, folder: Path, name: str) -> Tracker:
    """A run at MLFLOW_TRACKING_URI, or, where that is not set, in a database in FOLDER/mlflow."""

    def start(step: int) -> GeneralTracker:
        place = folder / "mlflow"
        place.mkdir(parents=True, exist_ok=True)
        if "MLFLOW_TRACKING_URI" not in os.environ:
            importlib.import_module("mlflow").set_tracking_uri(f"sqlite:///{(place / 'mlflow.db').absolute()}")
        known = (place / RUN_ID).read_text(encoding="utf-8") if step and (place / RUN_ID).exists() else None
        artifacts = (place / "artifacts").absolute().as_uri()
        tracker = MLflowTracker(config.tracking.project, logging_dir=artifacts, run_name=name, run_id=known)
        tracker.start()
        (place / RUN_ID).write_text(tracker.active_run.info.run_id, encoding="utf-8")
        return tracker

    return Tracker("mlflow", start)


class TrackerObserver(Observer):
    """Gives rows to a tracker. What goes wrong in it is told once and ends it alone: training goes on."""

    def __init__(self, tracker: Tracker, config: TrainConfig | SliceTrainConfig, tell: Tell):
        self.name = tracker.name
        self.start = tracker.start
        self.config = config
        self.tell = tell
        self.throughput = Throughput(config.batch_size)
        self.running: GeneralTracker | None = None

    def started(self, step: int) -> None:
        if importlib.util.find_spec(self.name) is None:
            self.tell(f"tracking.{self.name}: its package is not installed, so that it is left out")
            return
        with self._apart():
            self.running = self.start(step)
            self.running.store_init_configuration(_plain(flat(self.config.model_dump(mode="json"))))

    def logged(self, done: float, row: Row) -> None:
        values = self.throughput(row)
        if self.running is not None:
            with self._apart():
                self.running.log({_key(key): value for key, value in values.items() if key != "step"}, step=row["step"])

    def ended(self, step: int) -> None:
        self._finish()

    def interrupted(self, step: int) -> None:
        self._finish()

    def _finish(self) -> None:
        if self.running is not None:
            with self._apart():
                self.running.finish()

    @contextmanager
    def _apart(self) -> Iterator[None]:
        errors: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, *_own_errors(self.name))
        try:
            yield
        except errors as error:
            self.running = None
            self.tell(f"tracking.{self.name}: left out from here on ({' '.join(str(error).split())})")


def _own_errors(name: str) -> tuple[type[Exception], ...]:
    """The tracker's own class of errors."""
    if name not in ERRORS:
        return ()
    module, attribute = ERRORS[name]
    return (getattr(importlib.import_module(module), attribute),)


def _key(name: str) -> str:
    """A row's key as a name that every tracker takes: MLflow knows no comma."""
    return name.replace(",", "")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values that every tracker takes: numbers and texts."""
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in values.items()}
