"""A job's program: what Slurm says, the verdict on a stopped training, signals, arrays; with stand-ins for Slurm."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptmedseg.errors import UserError
from adaptmedseg.launch import job
from adaptmedseg.launch.allocation import Allocation
from adaptmedseg.launch.process import variables
from adaptmedseg.launch.requeue import Start, judge, last_step, put_back, read_starts, write_starts
from adaptmedseg.training.checkpoint import Checkpoint, CheckpointFolder
from adaptmedseg.training.stop import STOPPED_EXIT

TASK = {
    "SLURM_NTASKS": "6", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_CPUS_PER_TASK": "3", "SLURM_GPUS_ON_NODE": "3",
}  # fmt: skip
BATCH = {
    "SLURM_JOB_ID": "41", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_CPUS_PER_TASK": "2",
}  # fmt: skip


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of stand-ins: a job of two nodes that runs, whose `srun` notes its command and ends as `srun.code` says.

    Job steps and requeues are noted in `calls`.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    note = f'echo "$(basename "$0") $*" >> {folder}/calls'
    shown = f'case "$2" in hostnames) echo n1; echo n2;; job) cat {folder}/state;; esac'
    program(folder, "scontrol", f"{note}; {shown}")
    program(folder, "srun", f'{note}; case "$*" in *.smoke*) exit 0;; esac; exit $(cat {folder}/code)')
    (folder / "state").write_text("JobId=41 JobState=RUNNING Reason=None\n", encoding="utf-8")
    (folder / "code").write_text("0", encoding="utf-8")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name, value in BATCH.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(job, "END_SECONDS", 0)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield folder
    for number, handler in handlers.items():
        signal.signal(number, handler)


def calls(slurm: Path, word: str) -> list[str]:
    return [line for line in (slurm / "calls").read_text(encoding="utf-8").splitlines() if word in line]


def start_job(tmp_path: Path, restarts: int = 0) -> int:
    os.environ["SLURM_RESTART_COUNT"] = str(restarts)
    try:
        return job.main(["--out", str(tmp_path / "run"), "adapt", "budget.steps=5"])
    finally:
        del os.environ["SLURM_RESTART_COUNT"]


def test_a_task_is_told_its_place_among_all_nodes() -> None:
    found = variables(TASK)
    assert found == {
        "RANK": "4", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3", "GROUP_RANK": "1",
        "OMP_NUM_THREADS": "3",
    }  # fmt: skip
    assert variables(TASK | {"SLURM_NTASKS": "1"}) == {"OMP_NUM_THREADS": "3"}
    on_cpus = {key: value for key, value in TASK.items() if "GPU" not in key}
    assert variables(on_cpus)["ACCELERATE_USE_CPU"] == "true"


def test_an_allocation_is_read_from_slurm(slurm: Path) -> None:
    found = Allocation.from_environment(BATCH | {"SLURM_RESTART_COUNT": "3"})
    assert found == Allocation("41", ["n1", "n2"], processes=1, cpus=2, gpus=0, restarts=3)
    assert found.all_processes == 2
    assert found.backend == "gloo"
    first, second = found.meeting_point(0), found.meeting_point(1)
    assert first["MASTER_ADDR"] == "n1"
    assert first["MASTER_PORT"] != second["MASTER_PORT"]
    assert "--cpus-per-task=2" in found.srun()
    gpus = BATCH | {"SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}
    assert Allocation.from_environment(gpus).backend == "nccl"
    with pytest.raises(UserError, match=r"4 graphics processors and 1 processes a node.*--ntasks-per-node=4"):
        Allocation.from_environment(BATCH | {"SLURM_GPUS_ON_NODE": "4"})
    with pytest.raises(UserError, match="no Slurm job"):
        Allocation.from_environment({})


@settings(max_examples=50)
@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_ports_are_allowed_and_jobs_side_by_side_have_different_ones(number: int, step: int) -> None:
    a, b = (Allocation(str(number + more), ["n1"], 1, 1, 0, 0) for more in (0, 1 + step % 5999))
    ports = {int(one.meeting_point(attempt)["MASTER_PORT"]) for one in (a, b) for attempt in (0, 1)}
    assert len(ports) == 4
    assert all(1024 < port < 32768 for port in ports)


@pytest.mark.parametrize(
    ("starts", "asked", "requeues", "again", "code", "word"),
    [
        ([Start(0, 9, 0)], False, 0, False, 0, "complete"),
        ([Start(0, 9, 0)], True, 0, False, 0, "complete"),
        ([Start(0, 9, STOPPED_EXIT)], True, 0, True, STOPPED_EXIT, "step 9"),
        ([Start(0, 9, STOPPED_EXIT)], False, 0, True, STOPPED_EXIT, "step 9"),  # preempted: the steps alone are told
        ([Start(0, 0, 143)], False, 0, True, STOPPED_EXIT, "step 0"),  # before the training listened
        ([Start(0, 0, 137)], True, 0, True, STOPPED_EXIT, "step 0"),
        ([Start(0, 0, 137)], False, 0, False, 137, "failed"),  # out of memory, most likely
        ([Start(0, 5, 1)], False, 0, False, 1, "failed"),
        ([Start(0, 5, 2)], True, 0, False, 2, "failed"),
        ([Start(0, 0, STOPPED_EXIT)] * 2, True, 1, False, STOPPED_EXIT, "before a step was done"),
        ([Start(0, 0, 143), Start(0, 4, 143), Start(4, 4, 143)], True, 2, True, STOPPED_EXIT, "step 4"),
        ([Start(0, 9, STOPPED_EXIT)], True, 50, False, STOPPED_EXIT, "50 times"),
    ],
)
def test_verdicts(starts: list[Start], asked: bool, requeues: int, again: bool, code: int, word: str) -> None:
    verdict = judge(starts, asked, requeues, 50)
    assert (verdict.requeue, verdict.code) == (again, code)
    assert word in verdict.sentence


def test_the_last_step_is_that_of_the_newest_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert last_step(out) == 0
    folder = CheckpointFolder(tmp_path / "run.training", keep=2)
    for step in (5, 120):
        folder.write(Checkpoint(step, {"a": torch.zeros(1)}))
    assert last_step(out) == folder.steps()[-1] == 120


def test_starts_are_remembered_for_the_job_that_made_them(tmp_path: Path) -> None:
    path = tmp_path / "run.slurm" / "starts-1.json"
    assert read_starts(path, 3) == []
    write_starts(path, [Start(0, 4, 75), Start(4, 9, 75)])
    assert read_starts(path, 2) == [Start(0, 4, 75), Start(4, 9, 75)]
    assert read_starts(path, 0) == []  # another job's, of the same number
    path.write_text("[{", encoding="utf-8")
    assert read_starts(path, 2) == []


@pytest.mark.parametrize(
    ("state", "word"), [("COMPLETING", "completing"), ("CANCELLED", "cancelled"), ("RUNNING", ""), ("", "unknown")]
)
def test_a_job_is_put_back_only_while_it_runs(slurm: Path, state: str, word: str) -> None:
    (slurm / "state").write_text(f"JobId=41 JobState={state} Reason=None\n" if state else "", encoding="utf-8")
    assert word in put_back("41")
    assert bool(calls(slurm, "scontrol requeue 41")) == (state == "RUNNING")


def test_a_refused_requeue_is_told(slurm: Path) -> None:
    program(slurm, "scontrol", f"case $1 in show) cat {slurm}/state;; *) echo 'Requeue is disabled' >&2; exit 1;; esac")
    assert put_back("41") == "Requeue is disabled"


def test_a_job_tests_then_trains_with_the_same_place(slurm: Path, tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("name: a\ndata: {paths: [prepared/one]}\n", encoding="utf-8")
    assert job.main(["--out", str(tmp_path / "run"), str(config)]) == 0
    smoke, training = calls(slurm, "srun")
    assert (
        f"adaptmedseg.launch.smoke --backend=gloo --seconds=30 --hosts=n1,n2 --same={config} --same=prepared/one"
        in smoke
    )
    assert training.endswith(f"adaptmedseg.train {config} --out {tmp_path}/run --resume")
    assert all("--nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=2" in line for line in (smoke, training))
    assert not calls(slurm, "requeue")


def test_what_must_be_alike_is_found_among_the_arguments(tmp_path: Path) -> None:
    config, broken, data = tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "set"
    config.write_text("name: a\n", encoding="utf-8")
    broken.write_text("name: [", encoding="utf-8")
    data.mkdir()
    (data / "manifest.json").write_text("{}", encoding="utf-8")
    assert job.inputs(["adapt", str(config), str(broken), "--data", str(data), "--seed", "1"]) == [config, broken, data]


def test_a_failed_test_ends_the_job_untrained(slurm: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    program(slurm, "srun", f'echo "srun $*" >> {slurm}/calls; exit 3')
    assert start_job(tmp_path) == 3
    assert len(calls(slurm, "srun")) == 1
    assert "nothing was trained" in capfd.readouterr().err


@pytest.mark.parametrize("code", [1, 2, 137])
def test_a_failing_training_is_not_put_back(slurm: Path, tmp_path: Path, code: int) -> None:
    (slurm / "code").write_text(str(code), encoding="utf-8")
    assert start_job(tmp_path) == code
    assert not calls(slurm, "requeue")


def test_a_job_that_never_makes_a_step_is_put_back_once(slurm: Path, tmp_path: Path) -> None:
    (slurm / "code").write_text(str(STOPPED_EXIT), encoding="utf-8")
    assert [start_job(tmp_path, restarts) for restarts in (0, 1)] == [STOPPED_EXIT] * 2
    assert len(calls(slurm, "scontrol requeue")) == 1


def test_a_signal_reaches_the_step_and_the_job_goes_back(slurm: Path, tmp_path: Path) -> None:
    """srun's stand-in signals its parent, as Slurm does, and waits to be told."""
    script = f'case "$*" in *.smoke*) exit 0;; esac; trap "exit {STOPPED_EXIT}" USR1; kill -USR1 $PPID; sleep 20 & wait'
    program(slurm, "srun", script)
    assert start_job(tmp_path) == STOPPED_EXIT
    assert calls(slurm, "scontrol requeue 41")


def test_a_step_that_hangs_is_ended(slurm: Path) -> None:
    with pytest.raises(UserError, match="did not end within 0 s"):
        job.Steps().run([sys.executable, "-c", "import time; time.sleep(60)"], {}, 0.3)


@pytest.mark.parametrize(
    ("given_names", "out", "words"),
    [
        (("--folds", "3,4"), "fold4", ["adapt", "--seed", "1", "--fold", "4"]),
        (("--strategies", "lora,full"), "full", ["strategies/full", "--seed", "1"]),
    ],
)
def test_a_task_of_an_array_does_its_part(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    given_names: tuple[str, str], out: str, words: list[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    own = ["adapt"] if given_names[0] == "--folds" else []
    assert job.main(["--out", str(tmp_path), *given_names, *own, "--seed", "1"]) == 0
    [line] = calls(slurm, "adaptmedseg.train ")
    assert line.endswith(f"adaptmedseg.train {' '.join(words)} --out {tmp_path}/{out} --resume")


@pytest.mark.parametrize("number", [None, "2"])
def test_a_task_without_a_part_is_refused(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, number: str | None
) -> None:
    if number is not None:
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", number)
    assert job.main(["--out", str(tmp_path), "--folds", "0,1", "adapt"]) == 2
    assert "sbatch --array=0-1" in capsys.readouterr().err
