"""Jobs on a real Slurm of two nodes: submitting, several nodes, arrays, chains, going on after every kind of stop."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from daemons import Cluster, running, why_not
from small_cases import MODALITY, Outcome, call
from training_cases import same_weights, training_chain

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600.0  # a limit for a busy machine, not what it takes
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ADAPTMEDSEG_PYTHON": sys.executable}
LONG = ("budget.steps=200", "checkpoint.minutes=null")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    with (
        mock.patch.dict(os.environ, ONE_THREAD),
        running(tmp_path_factory.mktemp("slurm"), nodes=2) as started,
        mock.patch.dict(os.environ, started.environment),
    ):
        yield started


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_chain(tmp_path_factory.mktemp("chain"))


def submit(out: Path, *arguments: str | Path) -> list[str]:
    """`adaptmedseg submit` on the CPU; returns the jobs' numbers."""
    outcome = call("submit", *arguments, "--out", out, "--cpu", "--cpus", "1", "--time", "10")
    assert outcome.code == 0, outcome
    return re.findall(r"^job (\d+): ", outcome.out, flags=re.MULTILINE)


def log_of(out: Path) -> str:
    return "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(out.with_name(f"{out.name}.slurm").glob("*.log"))
    )


def wait_for_log(out: Path, pattern: str, count: int = 1) -> None:
    """Wait until a pattern is in a run's logs so often."""
    ends = time.monotonic() + SECONDS
    while len(re.findall(pattern, log_of(out))) < count:
        assert time.monotonic() < ends, f"no {pattern}\n{log_of(out)}"
        time.sleep(0.1)


def test_one_process_by_the_committed_script(cluster: Cluster, chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--cpus-per-task=1", f"--chdir={ROOT}", f"--output={tmp_path}/log")
    job = cluster.submit(*options, ROOT / "slurm/cpu_test.sbatch", chain / "tiny.yaml", "--out", out)
    assert cluster.wait(job, SECONDS) == ["COMPLETED"], (tmp_path / "log").read_text(encoding="utf-8")
    assert (out / "model.safetensors").is_file()
    assert not out.with_name("run.training").exists()


def test_two_nodes_meet_and_train(cluster: Cluster, chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    [job] = submit(out, chain / "tiny.yaml", "--nodes", "2")
    assert cluster.wait(job, SECONDS) == ["COMPLETED"], log_of(out)
    assert "smoke test: 2 processes on 2 hosts are alike and reach each other over gloo" in log_of(out)
    assert (out / "model.safetensors").is_file()


def test_two_nodes_that_cannot_talk_end_at_once(cluster: Cluster, chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with mock.patch.dict(os.environ, {"GLOO_SOCKET_IFNAME": "absent0"}):  # sbatch hands it to the job
        [job] = submit(out, chain / "tiny.yaml", "--nodes", "2")
    assert cluster.wait(job, SECONDS) == ["FAILED"]
    assert cluster.show(job, "ExitCode") == ["3:0"]
    assert "rank 1 (on n2) could not add up over gloo" in log_of(out)
    assert "nothing was trained" in log_of(out)


def test_an_array_over_folds_then_evaluation_and_report(cluster: Cluster, chain: Path, tmp_path: Path) -> None:
    labels = ("--modality", MODALITY, "--label", "1=prostate", "--label", "2=bladder")
    prepared = call("prepare", chain / "source", "--out", tmp_path / "data", "--folds", "2", *labels)
    assert prepared.code == 0, prepared
    out = tmp_path / "folds"
    data = ("--data", tmp_path / "data")
    jobs = submit(out, chain / "tiny.yaml", *data, "--folds", "all", "--then", "evaluate,report")
    states = [cluster.wait(job, SECONDS) for job in jobs]
    assert states == [["COMPLETED", "COMPLETED"], ["COMPLETED"], ["COMPLETED"]], log_of(out)
    assert (tmp_path / "folds.evaluation" / "report.html").is_file()


def test_stopped_three_times_it_learns_what_it_would_have(cluster: Cluster, chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    [job] = submit(out, chain / "tiny.yaml", *LONG)
    for tenths in (1, 2):
        wait_for_log(out, r"training \w+: \d+%", 2 * tenths)
        cluster.call("scancel", "--batch", "--signal=USR1", job)
        wait_for_log(out, "asking Slurm to put the job back", tenths)
    wait_for_log(out, r"training \w+: \d+%", 6)
    urgent = cluster.submit("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    assert cluster.wait(urgent, SECONDS) == ["COMPLETED"]
    assert cluster.wait(job, SECONDS) == ["COMPLETED"], log_of(out)
    assert cluster.show(job, "Restarts") == ["3"]
    whole = call("train", chain / "tiny.yaml", "--out", tmp_path / "whole", "--device", "cpu", *LONG)
    assert whole.code == 0, whole
    assert same_weights(out, tmp_path / "whole")


def test_a_job_that_fails_is_not_put_back_and_nothing_follows(cluster: Cluster, chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    broken = training_chain(tmp_path / "broken")
    jobs = submit(out, broken / "tiny.yaml", "--then", "evaluate", "--sbatch", "--begin=now+3")
    (broken / "base.safetensors").unlink()
    assert cluster.wait(jobs[0], SECONDS) == ["FAILED"]
    assert cluster.show(jobs[0], "Restarts") == ["0"]
    assert cluster.wait(jobs[1], SECONDS) == ["CANCELLED"]
    assert "error: " in log_of(out)
    assert "the training failed (exit code 2) and is not put back" in log_of(out)


def test_a_cancelled_job_stays_cancelled_and_goes_on_when_submitted_again(
    cluster: Cluster, chain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    [job] = submit(out, chain / "tiny.yaml", *LONG)
    wait_for_log(out, r"training \w+: \d+%")
    cluster.call("scancel", job)
    assert cluster.wait(job, SECONDS) == ["CANCELLED"]
    assert "not put back: the job is " in log_of(out)
    outcome: Outcome = call("submit", chain / "tiny.yaml", *LONG, "--out", out, "--cpu", "--dry-run")
    assert "goes on from step" in outcome.err
