"""Tiny trainings from files, in this process and in others, for the tests of resuming and of several processes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from small_cases import MODALITY, call, small_folder
from test_cli import CONFIG, write_base

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TRAIN = [sys.executable, "-m", "adaptmedseg.train"]


def training_chain(root: Path, **changes: Any) -> Path:
    """A prepared set of five cases, a tiny base and `tiny.yaml`, that trains an adapter on them."""
    small_folder(root / "source", 5)
    labels = ["--modality", MODALITY, "--label", "1=prostate", "--label", "2=bladder"]
    outcome = call("prepare", root / "source", "--out", root / "data", "--name", "small", *labels)
    assert outcome.code == 0, outcome
    base = write_base(root / "base.safetensors")
    prompts = {"text": 0.4, "text_box": 0.2, "text_points": 0.2, "box": 0.1, "points": 0.1}
    config = CONFIG | {"validations": 0, "base": str(base), "prompts": prompts, "data": {"paths": [str(root / "data")]}}
    (root / "tiny.yaml").write_text(yaml.safe_dump(config | changes))
    return root


def arguments(chain: Path, out: Path, *more: str) -> list[str]:
    return [str(chain / "tiny.yaml"), "--out", str(out), "--device", "cpu", *more]


def start(*command: str | Path) -> BaseProcess:
    """`adaptmedseg COMMAND...` in a process of its own, forked from this one: imports are most of a tiny training."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=command)
    process.start()
    return process


def _run(*command: str | Path) -> None:
    outcome = call(*command)
    print(outcome.err, file=sys.stderr)
    sys.exit(outcome.code)


def launch(count: int, chain: Path, out: Path, *more: str, timeout: float = 240) -> list[tuple[int, str]]:
    """A training by several processes; the exit code and the standard error of each."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    workers = [
        subprocess.Popen(
            [*TRAIN, *arguments(chain, out, *more)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**ENVIRONMENT, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        errors = [worker.communicate(timeout=timeout)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, error) for worker, error in zip(workers, errors, strict=True)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
