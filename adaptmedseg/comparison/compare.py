"""Running a comparison: one process a job, what is done already left alone, what fails told and passed over."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adaptmedseg.comparison.job import LOG
from adaptmedseg.comparison.plan import Task, is_done

ERROR = "error: "
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Failure:
    """A job that did not end well, and why in a sentence."""

    task: Task
    sentence: str


def label_of(task: Task) -> str:
    """How a job is called in what is printed."""
    return task.job.name if task.seed is None else f"{task.job.name}, seed {task.seed}"


def run_tasks(tasks: Sequence[Task], device: str, tell: Tell) -> list[Failure]:
    """Do all jobs one after another; returns those that failed."""
    failures = []
    for number, task in enumerate(tasks, 1):
        place = f"{number}/{len(tasks)} {label_of(task)}"
        if is_done(task):
            tell(f"{place}: done before")
            continue
        tell(place)
        sentence = _run(task, device)
        if sentence:
            failures.append(Failure(task, sentence))
            tell(f"{place}: failed: {sentence}")
    return failures


def _run(task: Task, device: str) -> str:
    """Do one job; returns why it failed, or nothing."""
    path = task.folder / LOG
    with path.open("wb") as log:
        code = run_job(task.folder, device, log)
    if code == 0:
        return ""
    if code < 0:
        return f"its process was stopped by signal {-code}, most likely for memory (see {path})"
    lines = [line for line in path.read_text(errors="replace", encoding="utf-8").splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason given"
    return last.removeprefix(ERROR) if last.startswith(ERROR) else f"{last} (see {path})"


def run_job(folder: Path, device: str, log: BinaryIO) -> int:
    """Do the job of a folder in a process of its own, all that it prints into `log`; its exit code."""
    command = [sys.executable, "-m", "adaptmedseg.comparison.job", str(folder), device]
    return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
