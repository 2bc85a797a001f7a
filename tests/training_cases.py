"""Tiny trainings from files, in this process and in others, for the tests of resuming and of several processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import torch
import yaml
from accelerate import PartialState
from safetensors.torch import load_file
from small_cases import MODALITY, call, small_folder
from test_cli import CONFIG, write_base

from adaptmedseg.bench.process import free_port
from adaptmedseg.comparison import job


def training_chain(root: Path, **changes: Any) -> Path:
    """A prepared set of five cases, a tiny base and `tiny.yaml`, that trains an adapter on them."""
    small_folder(root / "source", 5)
    labels = ["--modality", MODALITY, "--label", "1=prostate", "--label", "2=bladder"]
    outcome = call("prepare", root / "source", "--out", root / "data", "--name", "small", *labels)
    assert outcome.code == 0, outcome
    base = write_base(root / "base.safetensors")
    prompts = {"text": 0.4, "text_box": 0.2, "text_points": 0.2, "box": 0.1, "points": 0.1}
    config = CONFIG | {"validations": 0, "base": str(base), "prompts": prompts, "data": {"paths": [str(root / "data")]}}
    (root / "tiny.yaml").write_text(yaml.safe_dump(config | changes), encoding="utf-8")
    return root


def arguments(chain: Path, out: Path, *more: str) -> list[str]:
    return [str(chain / "tiny.yaml"), "--out", str(out), "--device", "cpu", *more]


def start(*command: str | Path, **environment: str) -> BaseProcess:
    """`adaptmedseg COMMAND...` in a process of its own, forked from this one: imports are most of a tiny training."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(command, environment))
    process.start()
    return process


def forked_job(folder: Path, device: str, log: BinaryIO) -> int:
    """`comparison.compare.run_job` in a process that is forked from this one, for the same reason."""
    process = multiprocessing.get_context("fork").Process(target=_run_job, args=(folder, device, log))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run_job(folder: Path, device: str, log: BinaryIO) -> None:
    for standard in (1, 2):
        os.dup2(log.fileno(), standard)
    sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))  # pytest has put others in their place
    PartialState._reset_state()
    with mock.patch.object(sys, "argv", ["job", str(folder), device]):
        code = job.main()
    sys.stderr.flush()
    os._exit(code)


def _run(command: tuple[str | Path, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    PartialState._reset_state()  # what this process inherited says that it is alone
    outcome = call(*command)
    print(outcome.err, file=sys.stderr)
    sys.stderr.flush()
    os._exit(outcome.code)  # the end of a process that was not forked is none of its business


def launch(count: int, *command: str | Path) -> list[BaseProcess]:
    """The same by several processes that know each other, as a launcher would start them."""
    common = {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "ACCELERATE_USE_CPU": "true",
    }
    return [start(*command, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]


def codes(processes: list[BaseProcess], timeout: float = 240) -> list[int | None]:
    """Their exit codes, once all have ended; those that have not by then are killed."""
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
