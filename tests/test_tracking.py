"""Following a training: files of rows that survive being stopped, trackers, the live view."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.live import Live
from small_cases import call
from training_cases import arguments, training_chain

from adaptmedseg.cli import live as live_module
from adaptmedseg.cli.live import LiveView, dice_by_modality, duration
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.rows import CSV, JSON, RowFiles, Throughput, read_rows, to_csv
from adaptmedseg.training.tracking import Tracker, TrackerObserver, run_observers

CONFIG = TrainConfig.model_validate({"name": "test", "budget": {"steps": 5}, "batch_size": 2})


def row(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "minutes": step / 60, "loss": 1 / step, "lr": 0.1, **more}


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# Files of rows ------------------------------------------------------------------------------------


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    files = RowFiles(tmp_path, 2)
    files.started(0)
    for step in (10, 20, 30):
        files.logged(step / 30, row(step, **({"val_dice": 0.5} if step == 20 else {})))
        rows = read_rows(tmp_path / JSON)
        assert [r["step"] for r in rows] == list(range(10, step + 1, 10))
        assert (tmp_path / CSV).read_text(encoding="utf-8") == to_csv(rows)
    cells = table((tmp_path / CSV).read_text(encoding="utf-8"))
    assert [r["val_dice"] for r in cells] == ["", "0.5", ""]
    assert list(cells[0])[:4] == ["step", "minutes", "loss", "lr"]
    # Ten steps of two images in ten seconds of the budget.
    assert [r["samples_per_second"] for r in rows] == [pytest.approx(2.0)] * 3


@settings(max_examples=25, deadline=None)
@given(last=st.integers(1, 6), kept=st.integers(0, 6), torn=st.booleans())
def test_going_on_cuts_rows_after_the_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, last: int, kept: int, torn: bool
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    straight = [row(step) for step in range(1, 8)]
    files = RowFiles(folder, 1)
    files.started(0)
    for found in straight[:last]:
        files.logged(0, found)
    if torn:  # killed while a row was written
        (folder / JSON).write_text((folder / JSON).read_text(encoding="utf-8")[:-5], encoding="utf-8")
    kept = min(kept, last - torn)
    again = RowFiles(folder, 1)
    again.started(kept)
    for found in straight[kept:]:
        again.logged(0, found)
    rows = read_rows(folder / JSON)
    assert [r["step"] for r in rows] == list(range(1, 8))
    assert all(r.items() >= found.items() for r, found in zip(rows, straight, strict=True))
    assert (folder / CSV).read_text(encoding="utf-8") == to_csv(rows)


def test_the_first_row_has_no_rate_of_a_standing_clock() -> None:
    assert "samples_per_second" not in Throughput(2)({"step": 10, "minutes": 0.0})


# Trackers -----------------------------------------------------------------------------------------


class Spy:
    """A tracker that remembers what it is given."""

    def __init__(self, error: Exception | None = None):
        self.given: list[Any] = []
        self.error = error

    def store_init_configuration(self, values: dict) -> None:
        self.given.append(values)

    def log(self, values: dict, step: int) -> None:
        if self.error is not None:
            raise self.error
        self.given.append((step, values))

    def finish(self) -> None:
        self.given.append("end")


def test_a_tracker_is_given_configuration_and_rows() -> None:
    spy, said, begun = Spy(), list[str](), list[int]()
    observer = TrackerObserver(Tracker("tensorboard", lambda step: begun.append(step) or spy), CONFIG, said.append)  # type: ignore[arg-type,return-value,func-returns-value]
    observer.started(7)
    observer.logged(0.5, row(10, **{"val_dice T2 MRI, liver": 0.5}))
    observer.ended(20)
    assert begun == [7]
    configuration, (step, values), end = spy.given
    assert configuration["budget.steps"] == 5
    assert all(isinstance(value, int | float | str) for value in configuration.values())
    assert step == 10
    assert values["val_dice T2 MRI liver"] == 0.5
    assert "step" not in values
    assert (end, said) == ("end", [])


def test_a_tracker_of_a_training_that_was_stopped_is_ended() -> None:
    spy = Spy()
    observer = TrackerObserver(Tracker("tensorboard", lambda step: spy), CONFIG, lambda text: None)  # type: ignore[arg-type,return-value]
    observer.started(0)
    observer.interrupted(3)
    assert spy.given[-1] == "end"


def test_a_tracker_that_fails_is_told_of_once_and_left_out() -> None:
    spy, said = Spy(OSError("no connection")), list[str]()
    observer = TrackerObserver(Tracker("tensorboard", lambda step: spy), CONFIG, said.append)  # type: ignore[arg-type,return-value]
    observer.started(0)
    for step in (10, 20):
        observer.logged(0.5, row(step))
    observer.ended(20)
    assert said == ["tracking.tensorboard: left out from here on (no connection)"]
    assert len(spy.given) == 1


def test_a_missing_package_is_told_of() -> None:
    said: list[str] = []
    observer = TrackerObserver(Tracker("no_such_package", lambda step: pytest.fail("was started")), CONFIG, said.append)
    observer.started(0)
    observer.logged(0.5, row(10))
    observer.ended(10)
    assert said == ["tracking.no_such_package: its package is not installed, so that it is left out"]


def test_only_chosen_trackers_follow(tmp_path: Path) -> None:
    def names(**tracking: object) -> list[str]:
        config = TrainConfig.model_validate({**CONFIG.model_dump(), "tracking": tracking})
        files, *trackers = run_observers(config, tmp_path, "run", [].append)
        assert isinstance(files, RowFiles)
        return [tracker.name for tracker in trackers if isinstance(tracker, TrackerObserver)]

    assert names() == ["tensorboard"]
    assert names(tensorboard=False) == []
    assert names(wandb=True, mlflow=True) == ["tensorboard", "wandb", "mlflow"]


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_sees_the_newer_rows_after_going_on(tmp_path: Path) -> None:
    said: list[str] = []
    for start, steps, loss in [(0, (10, 20, 30), 1.0), (10, (20, 30, 40), 0.5)]:
        _, observer = run_observers(CONFIG, tmp_path, "run", said.append)
        observer.started(start)
        for step in steps:
            observer.logged(0, row(step) | {"loss": loss})
        observer.ended(steps[-1])
    assert said == []
    assert scalars(tmp_path / "tensorboard", "loss") == [(10, 1.0), (20, 0.5), (30, 0.5), (40, 0.5)]


def test_mlflow_keeps_everything_in_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("mlflow.store.tracking.sqlalchemy_store")
    client_of = pytest.importorskip("mlflow").MlflowClient
    config = TrainConfig.model_validate({**CONFIG.model_dump(), "tracking": {"tensorboard": False, "mlflow": True}})
    said: list[str] = []
    for start, step in ((0, 10), (10, 20)):
        _, observer = run_observers(config, tmp_path, "run", said.append)
        observer.started(start)
        observer.logged(0, row(step))
        observer.ended(step)
    assert said == []
    client = client_of(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [10, 20]


# A whole training ---------------------------------------------------------------------------------


def test_a_run_holds_what_followed_it(tmp_path: Path) -> None:
    chain = training_chain(tmp_path)
    outcome = call("train", *arguments(chain, tmp_path / "run", "budget.steps=12"))
    assert outcome.code == 0, outcome
    logs = tmp_path / "run" / "logs"
    history = json.loads((tmp_path / "run" / "history.json").read_text(encoding="utf-8"))["rows"]
    rows = read_rows(logs / JSON)
    assert [r["loss"] for r in rows] == [r["loss"] for r in history]
    assert [float(r["loss"]) for r in table((logs / CSV).read_text(encoding="utf-8"))] == [r["loss"] for r in history]
    assert [step for step, _ in scalars(logs / "tensorboard", "loss")] == [10, 12]


def test_a_training_on_stored_embeddings_says_so(tmp_path: Path) -> None:
    chain = training_chain(tmp_path, adapter={"layers": [], "priors": None, "train": ["mask_decoder.*"]})
    store = tmp_path / "store"
    more = [f"data.embeddings={{folder: {store}, draws: 2}}", "budget.steps=2", "tracking.tensorboard=false"]
    first = call("train", *arguments(chain, tmp_path / "first", *more))
    assert first.code == 0, first
    assert "computing 6 of 6 image embeddings" in first.err
    again = call("train", *arguments(chain, tmp_path / "again", *more, "prompts.clicks=1"))
    assert again.code == 0, again
    assert "image embeddings" not in again.err
    refused = call("train", *arguments(chain, tmp_path / "third", f"data.embeddings={{folder: {store}}}"))
    assert refused.code == 2
    assert "data.embeddings.draws" in refused.err
    assert not (tmp_path / "third").exists()


# The live view ------------------------------------------------------------------------------------


def test_dice_of_a_modality_is_the_mean_over_structures() -> None:
    row = {"loss": 1, "val_dice": 0.1, "val_dice CT, liver": 0.4, "val_dice CT, spleen": 0.8, "val_dice MR, liver": 0.3}
    assert dice_by_modality(row) == {"CT": pytest.approx(0.6), "MR": 0.3}
    assert dice_by_modality({"loss": 1, "val_dice": 0.1}) == {}


def test_time_is_told_by_the_clock() -> None:
    assert [duration(seconds) for seconds in (0, 61.4, 3723)] == ["0:00:00", "0:01:01", "1:02:03"]


def test_the_live_view_shows_what_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 100.0, 130.0])
    monkeypatch.setattr(live_module.time, "monotonic", lambda: next(seconds))
    screen = Console(file=io.StringIO(), force_terminal=True, width=150)
    with Live(console=screen, auto_refresh=False) as live:
        shown = LiveView("training", 2, torch.device("cpu"), live)
        shown.logged(0.25, row(10, **{"val_dice T2 MRI, liver": 0.5, "val_dice T2 MRI, spleen": 0.7, "val_dice": 0.6}))
        shown.logged(0.5, row(20))
        screen.file = io.StringIO()
        live.refresh()
    text = screen.file.getvalue()
    # A quarter of the budget took thirty seconds, so that the half that is left takes sixty.
    for part in ("step 20", "loss 0.050", "2.00 samples/s", "0:01:00 left", "peak memory", "T2 MRI 0.600"):
        assert part in text, part
