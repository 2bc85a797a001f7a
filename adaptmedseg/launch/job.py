"""The program of a batch job: `python -m adaptmedseg.launch.job --out RUN CONFIG ...`, run by the scripts in `slurm`.

It tests that all processes reach each other, trains with --resume, and puts the job back into the queue when Slurm
stops it (time limit, preemption) before the training is complete. What it does not know is `adaptmedseg train`'s.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import yaml

from adaptmedseg.errors import UserError, exit_code
from adaptmedseg.launch.allocation import Allocation
from adaptmedseg.launch.requeue import (
    MAX_REQUEUES,
    Start,
    Verdict,
    judge,
    last_step,
    put_back,
    read_starts,
    was_stopped,
    write_starts,
)

SMOKE_SECONDS = 30
START_SECONDS = 300  # for importing libraries from a slow file system, beside the test's own time
LAST_SECONDS = 120  # for the last process to end after the first, then Slurm ends it
END_SECONDS = 60  # until Slurm ends a job that was put back
MANIFEST = "manifest.json"


class Steps:
    """Runs a job's steps; a signal from Slurm is passed on to the running one as SIGUSR1 and remembered."""

    def __init__(self) -> None:
        self.asked = False
        self.running: subprocess.Popen | None = None
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        _tell(f"got {signal.Signals(number).name}: the training is asked to stop")
        self.asked = True
        if self.running is not None and self.running.poll() is None:
            self.running.send_signal(signal.SIGUSR1)  # srun hands it to all tasks; of SIGTERM it would kill them

    def run(self, command: list[str], environment: Mapping[str, str], seconds: float | None = None) -> int:
        """The step's exit code, as a shell counts. UserError where it takes longer than `seconds`."""
        self.running = subprocess.Popen(command, env={**os.environ, **environment})
        if self.asked:  # while the step was being started
            self.running.send_signal(signal.SIGUSR1)
        try:
            code = self.running.wait(seconds)
        except subprocess.TimeoutExpired:
            self.running.kill()
            raise UserError(f"a step did not end within {seconds:.0f} s: {' '.join(command)}") from None
        finally:
            self.running = None
        return 128 - code if code < 0 else code


def inputs(arguments: Sequence[str]) -> list[Path]:
    """Files and prepared sets among a training's arguments, and the sets that a configuration among them names."""
    given = [Path(argument) for argument in arguments]
    found = [path for path in given if path.is_file() or (path / MANIFEST).is_file()]
    for path in [path for path in found if path.suffix in (".yaml", ".yml")]:
        with suppress(yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError):  # the training says what is wrong
            found += [Path(data) for data in yaml.safe_load(path.read_text(encoding="utf-8"))["data"]["paths"]]
    return found


def smoke_test(steps: Steps, allocation: Allocation, arguments: Sequence[str], seconds: int) -> int:
    """The smoke test's exit code; one process has nothing to test."""
    if allocation.all_processes == 1:
        return 0
    command = [*allocation.srun(), "--kill-on-bad-exit=0", f"--wait={seconds}", sys.executable, "-m"]
    command += ["adaptmedseg.launch.process", "adaptmedseg.launch.smoke", f"--backend={allocation.backend}"]
    command += [f"--seconds={seconds}", f"--hosts={','.join(allocation.hosts)}"]
    command += [f"--same={path}" for path in inputs(arguments)]
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # what is wrong is said in a sentence
    return steps.run(command, allocation.meeting_point(0) | quiet, seconds + START_SECONDS)


def train(steps: Steps, allocation: Allocation, out: Path, arguments: Sequence[str]) -> int:
    """The training's exit code."""
    # A process that ends is not the others' end at once: the first one may be writing a checkpoint.
    command = [*allocation.srun(), "--kill-on-bad-exit=0", f"--wait={LAST_SECONDS}", sys.executable, "-m"]
    command += ["adaptmedseg.launch.process", "adaptmedseg.train", *arguments, "--out", str(out), "--resume"]
    return steps.run(command, allocation.meeting_point(1))


def attend(
    steps: Steps, allocation: Allocation, out: Path, arguments: Sequence[str], limits: argparse.Namespace
) -> int:
    """One start of the job, from the test to the verdict; returns the job's exit code."""
    record = out.with_name(f"{out.name}.slurm") / f"starts-{allocation.job}.json"
    starts, before = read_starts(record, allocation.restarts), last_step(out)
    if before or allocation.restarts:
        _tell(f"start {allocation.restarts + 1} of this job, from step {before}")
    code = smoke_test(steps, allocation, arguments, limits.smoke_seconds)
    if code and not was_stopped(code, steps.asked):
        _tell("the smoke test failed, see above; nothing was trained")
        return code
    if code == 0 and not steps.asked:
        code = train(steps, allocation, out, arguments)
    elif code == 0:
        code = 128 + signal.SIGTERM
    starts = [*starts, Start(before, last_step(out), code)]
    write_starts(record, starts)
    return close(judge(starts, steps.asked, allocation.restarts, limits.max_requeues), allocation, out)


def close(verdict: Verdict, allocation: Allocation, out: Path) -> int:
    """Do what the verdict says; returns the job's exit code."""
    _tell(verdict.sentence)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not verdict.requeue:
        return verdict.code
    refused = put_back(allocation.job)
    if refused:
        _tell(f"not put back: {refused}; submitted again, it goes on from step {last_step(out)}")
        return verdict.code
    time.sleep(END_SECONDS)  # Slurm ends this process, by SIGTERM
    return verdict.code


def one_of(options: argparse.Namespace, rest: list[str], environment: Mapping[str, str]) -> tuple[Path, list[str]]:
    """The run folder and the training's arguments: in an array those of its task. UserError where there is none."""
    items = options.folds or options.strategies
    if not items:
        return options.out, rest
    names = items.split(",")
    what, number = "folds" if options.folds else "strategies", environment.get("SLURM_ARRAY_TASK_ID", "")
    if not number.isdecimal() or int(number) >= len(names):
        raise UserError(f"--{what} {items}: is for a job array, numbered from 0: sbatch --array=0-{len(names) - 1} ...")
    name = names[int(number)]
    if options.folds:
        return options.out / f"fold{name}", [*rest, "--fold", name]
    return options.out / name, [f"strategies/{name}", *rest]


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m adaptmedseg.launch.job", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="the run folder; in an array the folder of them")
    parser.add_argument("--folds", default="", help="folds of an array's tasks, separated by commas")
    parser.add_argument("--strategies", default="", help="strategies of an array's tasks, in place of CONFIG")
    parser.add_argument("--max-requeues", type=int, default=MAX_REQUEUES)
    parser.add_argument("--smoke-seconds", type=int, default=SMOKE_SECONDS)
    options, rest = parser.parse_known_args(arguments)
    steps = Steps()

    def work() -> int:
        out, chosen = one_of(options, rest, os.environ)
        return attend(steps, Allocation.from_environment(os.environ), out, chosen, options)

    return exit_code(work)


def _tell(sentence: str) -> None:
    print(f"job: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
