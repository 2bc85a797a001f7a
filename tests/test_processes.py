"""Several processes: the same training as one, and going on with another number of them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from small_cases import call
from training_cases import arguments, codes, launch, same_weights, training_chain

from adaptmedseg.training.checkpoint import CheckpointFolder
from adaptmedseg.training.stop import STOPPED_EXIT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
STEPS = 20
FASTER = ["optimiser.lr=0.01", "optimiser.warmup=0"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_chain(
        tmp_path_factory.mktemp("processes"), budget={"steps": STEPS}, batch_size=4, checkpoint={"minutes": None}
    )


def run(count: int, chain: Path, out: Path, *more: str) -> list[int | None]:
    return codes(launch(count, "train", *arguments(chain, out, *FASTER, *more)))


def losses(out: Path) -> torch.Tensor:
    rows = json.loads((out / "history.json").read_text(encoding="utf-8"))["rows"]
    return torch.tensor([row["loss"] for row in rows], dtype=torch.float64)


WAYS = {
    "an adapter": [],
    "AdamW, all weights": ["adapter=null", "optimiser.matrices=adamw"],
    "accumulated": ["compute.accumulate=2"],
    "a U-Net": ["adapter=null", "model=unet", "budget.steps=10"],
}


@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.slow if "U-Net" in way else ()) for way in WAYS])
def test_two_processes_train_as_one_does(chain: Path, tmp_path: Path, way: str) -> None:
    for count in (1, 2):
        assert run(count, chain, tmp_path / f"of{count}", *WAYS[way]) == [0] * count
    one, two = losses(tmp_path / "of1"), losses(tmp_path / "of2")
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["of1", "of2"]


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_shared_out_weights_train_as_whole_ones_do(chain: Path, tmp_path: Path, matrices: str) -> None:
    whole = ["adapter=null", f"optimiser.matrices={matrices}", "validations=2", "selection.keep=best"]
    shared = [*whole, "compute.parallel=fsdp", "compute.accumulate=2"]
    assert run(1, chain, tmp_path / "whole", *whole) == [0]
    assert run(2, chain, tmp_path / "shared", *shared) == [0, 0]
    torch.testing.assert_close(losses(tmp_path / "shared"), losses(tmp_path / "whole"), atol=1e-5, rtol=0)
    # A checkpoint of shared-out weights is one of whole weights.
    stopped(chain, tmp_path / "on", 2, *shared)
    assert run(1, chain, tmp_path / "on", "--resume", *whole) == [0]
    torch.testing.assert_close(losses(tmp_path / "on"), losses(tmp_path / "whole"), atol=1e-5, rtol=0)


def stopped(chain: Path, out: Path, count: int, *more: str) -> list[int]:
    """Have one of several processes be asked to stop; the steps of the checkpoints that are left."""
    processes = launch(count, "train", *arguments(chain, out, *FASTER, "checkpoint.steps=3", *more))
    folder = CheckpointFolder(out.with_name(f"{out.name}.training"))
    while not folder.steps():
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)
    pid = processes[-1].pid
    assert pid is not None
    os.kill(pid, signal.SIGUSR1)
    assert codes(processes) == [STOPPED_EXIT] * count
    assert not out.exists()
    return folder.steps()


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_a_training_goes_on_with_other_processes(chain: Path, tmp_path: Path, before: int, after: int) -> None:
    assert run(1, chain, tmp_path / "one") == [0]
    assert max(stopped(chain, tmp_path / "run", before)) < STEPS
    assert run(after, chain, tmp_path / "run", "--resume") == [0] * after
    torch.testing.assert_close(losses(tmp_path / "run"), losses(tmp_path / "one"), atol=1e-5, rtol=0)


def test_two_processes_resumed_end_bit_equal_to_two_uninterrupted(chain: Path, tmp_path: Path) -> None:
    assert run(2, chain, tmp_path / "whole") == [0, 0]
    stopped(chain, tmp_path / "run", 2)
    assert run(2, chain, tmp_path / "run", "--resume") == [0, 0]
    assert same_weights(tmp_path / "run", tmp_path / "whole")


def test_an_error_of_the_first_ends_all(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other.txt").write_text("", encoding="utf-8")
    assert run(2, chain, tmp_path / "run") == [2, 2]
    assert run(2, chain, tmp_path / "uneven", "batch_size=3") == [2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_with_a_sentence(
    chain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], killed: int
) -> None:
    long = ["budget.steps=100000", "checkpoint.steps=2", "tracking.tensorboard=false"]
    processes = launch(2, "train", *arguments(chain, tmp_path / "run", *FASTER, *long))
    folder = CheckpointFolder(tmp_path / "run.training")
    while not folder.steps():
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)
    processes[killed].kill()
    assert codes(processes, timeout=60)[1 - killed] == 1
    told = capfd.readouterr().err
    assert "error: another process of this training has ended" in told
    assert "Traceback" not in told
    assert folder.newest()[0] is not None


def test_a_batch_that_cannot_be_shared_is_refused(chain: Path, tmp_path: Path) -> None:
    outcome = call("train", *arguments(chain, tmp_path / "run", "batch_size=3", "compute.accumulate=2"))
    assert outcome.code == 2
    assert "batch_size 3: 1 process with compute.accumulate 2 cannot share it evenly" in outcome.err
    assert not any(tmp_path.iterdir())
