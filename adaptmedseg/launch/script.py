"""Batch scripts: what Slurm is asked for, and one command."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from adaptmedseg.errors import UserError

TIME = re.compile(r"(?:(?P<days>[0-9]+)-(?P<of_day>[0-9]+(?::[0-9]+){0,2})|(?P<plain>[0-9]+(?::[0-9]+){0,2}))")
MEMORY = re.compile(r"[1-9]\d*[KMGT]?")
NAME = re.compile(r"[\w.,@:+-]+")
OPTION = re.compile(r"--?[a-zA-Z][\w-]*([= ][^\n]+)?")
MOST_LEAD = 120  # seconds for a checkpoint before the time limit


@dataclass(frozen=True)
class Resources:
    """What a job is given; `gpus` are a node's, with a process for each, `cpus` a process's. Without `gpus` every node
    runs one process on its CPUs. UserError for what no Slurm takes."""

    time: str
    gpus: int = 0
    nodes: int = 1
    cpus: int = 4
    memory: str | None = None
    partition: str | None = None
    account: str | None = None
    more: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        seconds(self.time)
        for option, value in (("--gpus", self.gpus + 1), ("--nodes", self.nodes), ("--cpus", self.cpus)):
            if value < 1:
                raise UserError(f"{option} {value}: must be 1 or more")
        if self.memory is not None and not MEMORY.fullmatch(self.memory):
            raise UserError(f"--mem {self.memory}: give a number with K, M, G or T, such as 32G")
        for option, name in (("--partition", self.partition), ("--account", self.account)):
            if name is not None and not NAME.fullmatch(name):
                raise UserError(
                    f"{option} {name!r}: is no name; `sinfo` shows partitions, your cluster's pages accounts"
                )
        for text in self.more:
            if not OPTION.fullmatch(text):
                raise UserError(f"--sbatch {text!r}: give one option of sbatch as in a script, such as --qos=long")

    @property
    def processes(self) -> int:
        """Of all nodes together."""
        return self.nodes * (self.gpus or 1)

    def lines(self) -> list[str]:
        """sbatch's options."""
        asked = [
            f"--time={self.time}",
            f"--nodes={self.nodes}",
            f"--ntasks-per-node={self.gpus or 1}",
            f"--cpus-per-task={self.cpus}",
        ]
        asked += [f"--gres=gpu:{self.gpus}"] if self.gpus else []
        named = {"--mem": self.memory, "--partition": self.partition, "--account": self.account}
        return asked + [f"{option}={value}" for option, value in named.items() if value] + self.more

    @property
    def lead(self) -> int:
        """Seconds before the time limit at which the job is told of it."""
        return max(1, min(MOST_LEAD, seconds(self.time) // 4))


def seconds(time: str) -> int:
    """A time limit in Slurm's forms: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].

    UserError for anything else, and for no time at all.
    """
    match = TIME.fullmatch(time.strip())
    if match is None:
        raise UserError(f"--time {time}: give hours:minutes:seconds, minutes, or days-hours, such as 12:00:00 or 2-00")
    if match["days"]:
        hours, minutes, rest = ([int(part) for part in match["of_day"].split(":")] + [0, 0])[:3]
        total = (int(match["days"]) * 24 + hours) * 3600 + minutes * 60 + rest
    else:
        parts = [int(part) for part in match["plain"].split(":")]
        hours, minutes, rest = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
        total = hours * 3600 + minutes * 60 + rest
    if total < 1:
        raise UserError(f"--time {time}: leaves no time at all")
    return total


def write_script(name: str, log: str, options: Sequence[str], folder: str, commands: Sequence[Sequence[str]]) -> str:
    """A batch script that runs commands in `folder`, one after the other until one fails; `log` is Slurm's pattern."""
    lines = [
        "#!/usr/bin/env bash",
        "# Written by `adaptmedseg submit`; submitted again by hand it goes on where it was.",
    ]
    lines += [f"#SBATCH {option}" for option in (f"--job-name={shlex.quote(name)}", f"--output={shlex.quote(log)}")]
    lines += [f"#SBATCH {option}" for option in ("--open-mode=append", *options)]
    lines += ["set -e", f"cd {shlex.quote(folder)}"]
    lines += [shlex.join(command) for command in commands[:-1]]
    return "\n".join([*lines, f"exec {shlex.join(commands[-1])}", ""])
