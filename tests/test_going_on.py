"""A training that ends anywhere goes on from its last checkpoint and comes to the same weights, to the bit."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_cases import Outcome, call
from training_cases import arguments, same_weights, start, training_chain

from adaptmedseg.adapters.file import read_card
from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.inference.loading import load_model
from adaptmedseg.training import checkpoint as checkpoint_module
from adaptmedseg.training.checkpoint import Checkpoint, CheckpointFolder, read_checkpoint
from adaptmedseg.training.keeper import CheckpointKeeper
from adaptmedseg.training.random_states import random_states, restore_random_states
from adaptmedseg.training.running_config import CheckpointConfig
from adaptmedseg.training.stop import STOPPED_EXIT, StopRequest
from adaptmedseg.training.trainer import Trainer

STEPS = 12
EVERY_2 = ["checkpoint.steps=2", "checkpoint.minutes=null"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_chain(tmp_path_factory.mktemp("going_on"), budget={"steps": STEPS})


@pytest.fixture(scope="module")
def whole(chain: Path) -> Path:
    """The run that was never interrupted."""
    assert call("train", *arguments(chain, chain / "whole")).code == 0
    assert not (chain / "whole.training").exists()
    return chain / "whole"


def train(chain: Path, out: Path, *more: str) -> Outcome:
    return call("train", *arguments(chain, out, *EVERY_2, *more))


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Have a stop be asked for in the middle of a step, as a signal would."""
    agree = Trainer._agree

    def asked(self: Trainer, loss: float, seconds: float, asked: bool, due: bool) -> tuple[bool, bool]:
        return agree(self, loss, seconds, asked or self.position.step == step, due)

    monkeypatch.setattr(Trainer, "_agree", asked)


def stopped_at(chain: Path, out: Path, step: int, *more: str) -> Path:
    """A training that was stopped after a step; the folder of its checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step)
        outcome = train(chain, out, *more)
    assert outcome.code == STOPPED_EXIT, outcome
    assert not out.exists()
    return out.with_name(f"{out.name}.training")


# The same weights in the end -----------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["optimiser.matrices=adamw", "adapter=null"], ["precision=bf16"]])
def test_a_stopped_training_ends_with_the_same_weights(chain: Path, tmp_path: Path, more: list[str]) -> None:
    assert train(chain, tmp_path / "whole", *more).code == 0
    stopped_at(chain, tmp_path / "run", 5, *more)
    outcome = train(chain, tmp_path / "run", "--resume", *more)
    assert outcome.code == 0, outcome
    assert "goes on after step 5" in outcome.err
    assert same_weights(tmp_path / "whole", tmp_path / "run")
    first, second = (
        json.loads((tmp_path / name / "history.json").read_text(encoding="utf-8")) for name in ("whole", "run")
    )
    losses = [[row["loss"] for row in history["rows"]] for history in (first, second)]
    assert losses[0] == losses[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]


def killed_and_resumed(chain: Path, out: Path, rng: random.Random, seconds: float) -> None:
    """Start a training, kill it within so many seconds, and so on until it ends.

    Asserts that what was reached is never lost, but for what came after the last checkpoint.
    """
    folder, reached = CheckpointFolder(out.with_name(f"{out.name}.training")), 0
    while True:
        process = start("train", *arguments(chain, out, *EVERY_2, "--resume"))
        end = time.monotonic() + rng.uniform(0, seconds)
        while process.is_alive() and time.monotonic() < end:
            reached = max([reached, *folder.steps()])
            time.sleep(0.002)
        process.kill()
        process.join()
        if process.exitcode == 0:
            return
        assert process.exitcode == -signal.SIGKILL
        if out.exists():  # it ended between giving the run its name and letting go of its checkpoints
            assert {path.name for path in out.iterdir()} == {"model.safetensors", "config.yaml", "history.json", "logs"}
        else:
            assert max(folder.steps(), default=0) >= reached
        for step in folder.steps():
            assert read_checkpoint(folder.path(step)).step == step


@pytest.fixture(scope="module")
def seconds(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long a training takes in a process of its own."""
    started = time.monotonic()
    process = start("train", *arguments(chain, tmp_path_factory.mktemp("timed") / "run", *EVERY_2))
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


def test_killed_at_random_moments_it_ends_with_the_same_weights(
    chain: Path, whole: Path, seconds: float, tmp_path: Path
) -> None:
    for seed in range(3):
        killed_and_resumed(chain, tmp_path / f"run{seed}", random.Random(seed), seconds)
        assert same_weights(whole, tmp_path / f"run{seed}")


@pytest.mark.slow
def test_twenty_of_twenty_end_bit_equal(chain: Path, whole: Path, seconds: float, tmp_path: Path) -> None:
    for seed in range(100, 120):
        killed_and_resumed(chain, tmp_path / f"run{seed}", random.Random(seed), seconds)
        assert same_weights(whole, tmp_path / f"run{seed}")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_it_with_a_checkpoint_and_its_own_code(
    chain: Path, whole: Path, tmp_path: Path, number: int
) -> None:
    process = start("train", *arguments(chain, tmp_path / "run", "checkpoint.minutes=null"))
    assert process.pid is not None
    while not (tmp_path / "run.training" / "lock").exists():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == STOPPED_EXIT
    assert len(CheckpointFolder(tmp_path / "run.training").steps()) == 1
    assert train(chain, tmp_path / "run", "--resume").code == 0
    assert same_weights(whole, tmp_path / "run")


# What a checkpoint is -------------------------------------------------------------------


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bytes instead of": lambda folder: os.truncate(folder / "state.safetensors", 1000),
    "state.safetensors: was changed": lambda folder: flip(folder / "state.safetensors"),
    "state.json: was changed": lambda folder: flip(folder / "state.json"),
    "state.json: is missing": lambda folder: (folder / "state.json").unlink(),
    "manifest.json: is missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest.json: is damaged": lambda folder: flip(folder / "manifest.json"),
    "manifest.json: holds": lambda folder: (folder / "manifest.json").write_text(
        '{"seal": "", "format": "other"}', encoding="utf-8"
    ),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(chain: Path, whole: Path, tmp_path: Path, words: str) -> None:
    folder = stopped_at(chain, tmp_path / "run", 5)
    assert CheckpointFolder(folder).steps() == [4, 5]
    DAMAGE[words](folder / "checkpoint-00000005")
    outcome = train(chain, tmp_path / "run", "--resume")
    assert outcome.code == 0, outcome
    told = next(line for line in outcome.err.splitlines() if line.startswith("note: "))
    assert words in told
    assert "going on from the checkpoint before it" in told
    assert "goes on after step 4" in outcome.err
    assert same_weights(whole, tmp_path / "run")
    assert not folder.exists()


def test_without_any_whole_checkpoint_nothing_is_done(chain: Path, tmp_path: Path) -> None:
    folder = stopped_at(chain, tmp_path / "run", 5)
    for step in (4, 5):
        flip(CheckpointFolder(folder).path(step) / "state.safetensors")
    outcome = train(chain, tmp_path / "run", "--resume")
    assert outcome.code == 2
    assert "none of its checkpoints can be used" in outcome.err.splitlines()[-1]
    assert CheckpointFolder(folder).steps() == [4, 5]


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=3)
    assert folder.newest() == (None, [])
    (folder.folder / "checkpoint-00000009.partial").mkdir(parents=True)  # left by an end while writing
    for step in range(1, 7):
        folder.write(Checkpoint(step, {"x": torch.full((2,), float(step))}, {"step": step}))
    assert folder.steps() == [4, 5, 6]
    assert sorted(path.name for path in folder.folder.iterdir()) == [folder.path(step).name for step in (4, 5, 6)]
    found, told = folder.newest()
    assert found is not None
    assert (found.step, found.facts, found.tensors["x"].tolist(), told) == (6, {"step": 6}, [6.0, 6.0], [])


def test_a_full_disk_costs_one_checkpoint_alone(
    chain: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint_module._write_files

    def full(folder: Path, checkpoint: Checkpoint) -> None:
        if checkpoint.step in (6, 8):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder, checkpoint)

    monkeypatch.setattr(checkpoint_module, "_write_files", full)
    outcome = train(chain, tmp_path / "run")
    assert outcome.code == 0, outcome
    assert "no checkpoint at step 6 (No space left on device); the last one is that of step 4" in outcome.err
    assert same_weights(whole, tmp_path / "run")
    folder = stopped_at(chain, tmp_path / "other", 8)
    assert CheckpointFolder(folder).steps() == [2, 4]


def test_what_cannot_be_written_at_the_end_is_gone_on_with(
    chain: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device")])

    with monkeypatch.context() as patch:
        patch.setattr("adaptmedseg.training.run_folder.shutil.copytree", full)
        outcome = train(chain, tmp_path / "run")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].endswith(
        "run: cannot be written (its logs cannot be copied); free some space or choose another --out"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run.training"]
    assert train(chain, tmp_path / "run", "--resume").code == 0
    assert same_weights(whole, tmp_path / "run")


def test_a_full_disk_is_told_with_the_file_that_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("adaptmedseg.data.files.os.replace", full)
    with pytest.raises(OSError, match="log\\.csv"):
        write_atomic(tmp_path / "log.csv", "x")
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on file sizes")
def test_a_limit_on_file_sizes_is_an_error_that_is_caught(tmp_path: Path) -> None:
    """What safetensors itself raises when the system takes no more bytes."""
    resource = pytest.importorskip("resource")
    folder = CheckpointFolder(tmp_path / "checkpoints")
    folder.write(Checkpoint(1, {"x": torch.zeros(10)}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        keeper = CheckpointKeeper(folder, CheckpointConfig(), {})
        path, problem = keeper.write(Checkpoint(2, {"x": torch.zeros(10_000)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path is None
    assert "no checkpoint at step 2" in problem
    assert [p.name for p in folder.folder.iterdir()] == ["checkpoint-00000001"]


def test_when_a_checkpoint_is_due(tmp_path: Path) -> None:
    clock = [0.0]

    def due(*, step: int, at: float, **config: object) -> bool:
        clock[0] = 0.0
        keeper = CheckpointKeeper(
            CheckpointFolder(tmp_path), CheckpointConfig.model_validate(config), {}, now=lambda: clock[0]
        )
        clock[0] = at
        return keeper.is_due(step)

    assert due(step=7, at=601)
    assert not due(step=7, at=599)
    assert due(step=10, at=0, steps=5)
    assert not due(step=11, at=0, steps=5)
    assert due(step=11, at=601, steps=5)
    assert not due(step=10, at=1e6, minutes=None)


def test_random_states_come_back() -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))  # noqa: NPY002

    draw()
    states = json.loads(json.dumps(random_states()))
    first = [draw() for _ in range(3)]
    restore_random_states(states)
    assert [draw() for _ in range(3)] == first


def test_a_signal_is_heard_within_the_block_alone() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest().by_signal() as stop:
        assert not stop.made
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.made
    assert signal.getsignal(signal.SIGUSR1) == before


# Where a training may start, and how it goes on ---------------------------------------


def test_an_unfinished_training_is_not_started_over(chain: Path, tmp_path: Path) -> None:
    stopped_at(chain, tmp_path / "run", 3)
    outcome = train(chain, tmp_path / "run")
    assert outcome.code == 2
    assert "holds an unfinished training, at step 3; go on with --resume" in outcome.err.splitlines()[-1]
    outcome = call("evaluate", "--model", f"x={tmp_path / 'run'}", "--data", chain / "data", "--out", tmp_path / "eval")
    assert outcome.code == 2


def test_resume_starts_what_never_started_and_leaves_what_is_done(chain: Path, whole: Path, tmp_path: Path) -> None:
    assert train(chain, tmp_path / "run", "--resume").code == 0
    assert same_weights(whole, tmp_path / "run")
    outcome = train(chain, tmp_path / "run", "--resume")
    assert (outcome.code, outcome.out) == (0, f"{tmp_path / 'run'}: is finished\n")


CHANGES = {
    "seed was 0 and is 1": ["seed=1"],
    "optimiser.lr was 0.001 and is 0.1": ["optimiser.lr=0.1"],
    "adapter.layers": ["adapter.layers.0.rank=3"],
    "batch_size was 2 and is 1": ["batch_size=1"],
    "base has changed": ["base=fresh:small"],
    "data.paths: case small/": ["data.paths=[{other}]"],
}


@pytest.mark.parametrize("words", CHANGES)
def test_another_training_is_refused_by_the_key_that_differs(chain: Path, tmp_path: Path, words: str) -> None:
    folder = stopped_at(chain, tmp_path / "run", 3)
    other = chain / "other"
    if words.startswith("data") and not other.exists():
        labels = ["--modality", "T2 MRI", "--label", "1=prostate", "--label", "2=bladder", "--seed", "1"]
        assert call("prepare", chain / "source", "--out", other, "--name", "other", *labels).code == 0
    outcome = train(chain, tmp_path / "run", "--resume", *(more.format(other=other) for more in CHANGES[words]))
    assert outcome.code == 2, outcome
    assert words in outcome.err.splitlines()[-1]
    assert CheckpointFolder(folder).steps() == [2, 3]


def test_what_may_change_is_taken(chain: Path, whole: Path, tmp_path: Path) -> None:
    """A data set that moved, and how often checkpoints are written."""
    stopped_at(chain, tmp_path / "run", 3)
    (tmp_path / "moved").symlink_to(chain / "data")
    more = [f"data.paths=[{tmp_path / 'moved'}]", "checkpoint.steps=5", "data.cache_gib=0.001"]
    assert train(chain, tmp_path / "run", "--resume", *more).code == 0
    assert same_weights(whole, tmp_path / "run")


def test_a_finished_run_is_extended(chain: Path, tmp_path: Path) -> None:
    """The steps are those that a checkpoint in the middle of the longer training would have led to."""
    run, kept = tmp_path / "run", "checkpoint.extendable=true"
    assert train(chain, run, kept, "budget.steps=6").code == 0
    assert CheckpointFolder(tmp_path / "run.training").steps() == [6]
    short = (run / "model.safetensors").read_bytes()
    refused = train(chain, run, "--resume", kept, "budget.steps=9", "seed=4")
    assert "seed was 0 and is 4" in refused.err
    outcome = train(chain, run, "--resume", kept, "budget.steps=9")
    assert outcome.code == 0, outcome
    assert "goes on after step 6" in outcome.err
    history = json.loads((run / "history.json").read_text(encoding="utf-8"))
    assert history["summary"]["steps"] == 9
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["budget"]["steps"] == 9
    assert (run / "model.safetensors").read_bytes() != short
    assert train(chain, run, "--resume", "budget.steps=10").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert "kept no checkpoint to go on from" in train(chain, run, "--resume", "budget.steps=11").err


def test_a_clock_goes_on_where_it_was(chain: Path, tmp_path: Path) -> None:
    minutes = ["budget={minutes: 0.02}"]
    folder = stopped_at(chain, tmp_path / "run", 3, *minutes)
    found, _ = CheckpointFolder(folder).newest()
    assert found is not None
    spent = found.facts["position"]["seconds"]
    assert 0 < spent < 1.2
    assert train(chain, tmp_path / "run", "--resume", *minutes).code == 0
    history = json.loads((tmp_path / "run" / "history.json").read_text(encoding="utf-8"))
    assert history["rows"][-1]["minutes"] >= 0.02
    assert history["summary"]["steps"] > 3


def test_two_trainings_in_one_place_are_one_too_many(chain: Path, tmp_path: Path) -> None:
    process = start("train", *arguments(chain, tmp_path / "run", "budget={minutes: 10}"))
    while not (tmp_path / "run.training" / "lock").exists():
        time.sleep(0.01)
    outcome = train(chain, tmp_path / "run")
    process.kill()
    process.join()
    assert outcome.code == 2
    assert "another process is training here" in outcome.err.splitlines()[-1]
    assert (tmp_path / "run.training" / "lock").exists()
    assert train(chain, tmp_path / "run").code == 0


def test_a_training_that_goes_astray_says_so(chain: Path, tmp_path: Path) -> None:
    outcome = train(chain, tmp_path / "run", "optimiser.lr=1e30", "optimiser.clip=1e30", "optimiser.warmup=0")
    assert outcome.code == 2
    assert "the loss is not finite" in outcome.err.splitlines()[-1]


def test_a_checkpoint_of_another_model_is_refused(chain: Path, tmp_path: Path) -> None:
    folder = CheckpointFolder(stopped_at(chain, tmp_path / "run", 3))
    found, _ = folder.newest()
    assert found is not None
    fewer = dict(list(found.tensors.items())[:-1])
    folder.write(Checkpoint(3, {**fewer, "model.stranger": torch.zeros(1)}, found.facts))
    outcome = train(chain, tmp_path / "run", "--resume")
    assert outcome.code == 2
    assert "is not of this model (first difference: model.stranger)" in outcome.err.splitlines()[-1]


def test_an_adapter_on_random_weights_finds_them_again(chain: Path, tmp_path: Path) -> None:
    """Its file names the seed that drew them, which is no other one's."""
    more = ["base=fresh:small", "seed=3", "budget.steps=1", "checkpoint.steps=null"]
    outcome = call("train", *arguments(chain, tmp_path / "run", *more))
    assert outcome.code == 0, outcome
    assert read_card(tmp_path / "run" / "model.safetensors").base == "fresh:small@3"
    assert load_model(str(tmp_path / "run")).structures


def test_a_run_without_a_row_is_finished_too(chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped_at(chain, out, 2)
    assert train(chain, out, "--resume", "budget.steps=1").code == 0
    again = train(chain, out, "--resume", "budget.steps=1")
    assert (again.code, again.out) == (0, f"{out}: is finished\n")


def test_validations_without_cases_to_score_are_told(chain: Path, tmp_path: Path) -> None:
    outcome = train(chain, tmp_path / "run", "validations=2", "budget.steps=1")
    assert outcome.code == 0, outcome
    has_cases = bool(PreparedDataset.open(chain / "data").cases("val"))
    scored = "val_dice" in (tmp_path / "run" / "logs" / "log.jsonl").read_text(encoding="utf-8")
    assert scored == has_cases
    assert ("no case of the split 'val'" in outcome.err) == (not has_cases)
