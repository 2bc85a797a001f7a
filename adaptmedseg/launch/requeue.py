"""Whether a training that was stopped goes back into the queue, and putting it there."""

import json
import re
import signal
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from adaptmedseg.data.files import write_atomic
from adaptmedseg.training.stop import STOPPED_EXIT

MAX_REQUEUES = 50
MAX_IDLE_STARTS = 2  # one may have had bad luck, such as being preempted at once
KILLED_EXITS = {128 + number for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL)}


@dataclass(frozen=True)
class Start:
    """One of a job's starts: the training's step before and after it, and how the training ended."""

    before: int
    after: int
    code: int


@dataclass(frozen=True)
class Verdict:
    """What becomes of the job: back into the queue, or an end with `code`; `sentence` says why."""

    requeue: bool
    code: int
    sentence: str


def last_step(out: Path) -> int:
    """The step of a training's newest checkpoint, 0 where there is none. Their names alone are looked at."""
    found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in out.with_name(f"{out.name}.training").glob("*"))
    return max((int(match[1]) for match in found if match), default=0)


def was_stopped(code: int, asked: bool) -> bool:
    """Whether a training that ended with `code` did so because it was told to from outside. Signals may have come to
    this job (`asked`), or, where Slurm preempts, to the training alone, perhaps before it listened to them."""
    if code == STOPPED_EXIT:
        return True
    return code in KILLED_EXITS if asked else code in KILLED_EXITS - {128 + signal.SIGKILL}


def judge(starts: list[Start], asked: bool, requeues: int, most: int) -> Verdict:
    """The verdict on a job's last start. `requeues` counts those of this job so far."""
    last = starts[-1]
    if last.code == 0:
        return Verdict(False, 0, "the training is complete")
    if not was_stopped(last.code, asked):
        return Verdict(False, last.code, f"the training failed (exit code {last.code}) and is not put back")
    idle = [start for start in starts[-MAX_IDLE_STARTS:] if start.after <= start.before]
    if len(idle) == MAX_IDLE_STARTS:
        return Verdict(
            False,
            STOPPED_EXIT,
            f"{MAX_IDLE_STARTS} starts in a row were stopped before a step was done; give more --time or look above",
        )
    if requeues >= most:
        return Verdict(False, STOPPED_EXIT, f"was put back {requeues} times, the most allowed; submit again to go on")
    return Verdict(True, STOPPED_EXIT, f"stopped at step {last.after}; asking Slurm to put the job back")


def read_starts(path: Path, requeues: int) -> list[Start]:
    """This job's starts so far. A record of more of them than there were is another job's of the same number."""
    try:
        starts = [Start(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
    return starts if len(starts) <= requeues else []


def write_starts(path: Path, starts: list[Start]) -> None:
    """Keep them for the next start."""
    write_atomic(path, json.dumps([asdict(start) for start in starts], indent=1))


def put_back(job: str) -> str:
    """Put a running job back into the queue; returns why it could not be, or nothing.

    One that is being cancelled is left alone: Slurm would put it back all the same.
    """
    shown = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True)
    state = re.search(r"\bJobState=(\w+)", shown.stdout)
    if state is None or state[1] != "RUNNING":
        return f"the job is {state[1].lower() if state else 'unknown to scontrol'}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    return done.stderr.strip() or f"scontrol ended with {done.returncode}" if done.returncode else ""
