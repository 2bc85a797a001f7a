"""From an order to scripts beside the run, and to jobs that wait for each other."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from adaptmedseg.data.files import write_atomic
from adaptmedseg.errors import UserError
from adaptmedseg.launch.script import Resources, write_script

Step = Literal["evaluate", "report"]
REPORT_TIME, REPORT_CPUS = "00:30:00", 2
PROGRAM = [sys.executable, "-m", "adaptmedseg.cli.main"]
DEAF = ["trap", "", "USR1", "TERM"]  # Slurm's signals are lost until the program listens to them, instead of ending it
JOB = [sys.executable, "-m", "adaptmedseg.launch.job"]


@dataclass(frozen=True)
class Order:
    """A training for Slurm and what follows it. `arguments` are `adaptmedseg train`'s without --out; `reference` names
    the models to score beside the trained one, `data` the sets to score on.

    With `folds` or `strategies` it is a job array, and OUT a folder of runs.
    """

    name: str
    out: Path
    arguments: list[str]
    resources: Resources
    max_requeues: int
    reference: dict[str, str] = field(default_factory=dict)
    data: list[str] = field(default_factory=list)
    fold: int | None = None
    folds: list[int] = field(default_factory=list)
    strategies: list[str] = field(default_factory=list)
    then: Sequence[Step] = ()

    @property
    def folder(self) -> Path:
        """Where scripts and logs are kept."""
        return self.out.with_name(f"{self.out.name}.slurm")

    @property
    def evaluation(self) -> Path:
        """Where scores are kept, and the report."""
        return self.out.with_name(f"{self.out.name}.evaluation")

    def runs(self) -> dict[str, Path]:
        """The trained models by name."""
        if self.folds:
            return {f"fold {fold}": self.out / f"fold{fold}" for fold in self.folds}
        if self.strategies:
            return {name: self.out / name for name in self.strategies}
        return {"trained": self.out}


@dataclass(frozen=True)
class Script:
    """A batch script on disk; `waits` where it is to start after the one before it has succeeded."""

    path: Path
    waits: bool


def write_scripts(order: Order) -> list[Script]:
    """Write the order's scripts into its folder, the training's first."""
    texts = {"train": _training(order)}
    texts |= {step: (_evaluation if step == "evaluate" else _report)(order) for step in order.then}
    scripts = []
    for step, text in texts.items():
        path = order.folder / f"{step}.sbatch"
        write_atomic(path, text)
        scripts.append(Script(path, step != "train"))
    return scripts


def _training(order: Order) -> str:
    items = len(order.folds or order.strategies)
    options = [*order.resources.lines(), f"--signal=B:USR1@{order.resources.lead}", "--requeue"]
    command = [*JOB, "--out", str(order.out), "--max-requeues", str(order.max_requeues)]
    if items:
        options.append(f"--array=0-{items - 1}")
        names = ("--folds", order.folds) if order.folds else ("--strategies", order.strategies)
        command += [names[0], ",".join(map(str, names[1]))]
    return _script(order, "train", "%A_%a" if items else "%j", options, [DEAF, [*command, *order.arguments]])


def _evaluation(order: Order) -> str:
    beside = [word for name, model in order.reference.items() for word in ("--model", f"{name}={model}")]
    data = [word for path in order.data for word in ("--data", path)]
    rest = [*data, "--out", str(order.evaluation), "--append"]  # a second start replaces the first one's scores
    if order.folds:
        commands = [
            [*PROGRAM, "evaluate", *beside, "--model", f"trained={run}", *rest, "--fold", str(fold)]
            for fold, run in zip(order.folds, order.runs().values(), strict=True)
        ]
    else:
        models = [word for name, run in order.runs().items() for word in ("--model", f"{name}={run}")]
        fold = [] if order.fold is None else ["--fold", str(order.fold)]
        commands = [[*PROGRAM, "evaluate", *beside, *models, *rest, *fold]]
    resources = replace(order.resources, nodes=1, gpus=min(1, order.resources.gpus))
    return _script(order, "evaluate", "%j", [*resources.lines(), "--requeue"], commands)


def _report(order: Order) -> str:
    runs = [word for name, run in order.runs().items() for word in ("--run", f"{name}={run}")]
    resources = replace(order.resources, time=REPORT_TIME, nodes=1, gpus=0, cpus=REPORT_CPUS)
    return _script(
        order, "report", "%j", [*resources.lines(), "--requeue"], [[*PROGRAM, "report", str(order.evaluation), *runs]]
    )


def _script(order: Order, step: str, number: str, options: list[str], commands: list[list[str]]) -> str:
    log = (order.folder / f"{step}-{number}.log").absolute()
    return write_script(f"{order.name}-{step}", str(log), options, str(Path.cwd()), commands)


def submit(scripts: Sequence[Script]) -> list[str]:
    """Hand scripts to Slurm; returns the jobs' numbers. UserError with Slurm's own words where it refuses one; those
    before it are in the queue then, and are named."""
    jobs: list[str] = []
    for script in scripts:
        command = ["sbatch", "--parsable"]
        if script.waits:
            command += [f"--dependency=afterok:{jobs[-1]}", "--kill-on-invalid-dep=yes"]
        done = subprocess.run([*command, str(script.path)], capture_output=True, text=True)
        if done.returncode:
            before = f" (already submitted: {', '.join(jobs)})" if jobs else ""
            reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise UserError(f"{script.path}: Slurm refuses it: {reason}{before}")
        jobs.append(done.stdout.strip().split(";")[0])
    return jobs


def check_sbatch() -> None:
    """UserError where this machine cannot submit."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on this machine: run this on the cluster's login node, or give --dry-run to write the "
            "scripts only"
        )
