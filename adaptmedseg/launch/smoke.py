"""A test before training that all processes reach each other and are alike: `python -m adaptmedseg.launch.smoke`.

Started once a process by a launcher that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT: torchrun,
`accelerate launch` or `adaptmedseg.launch.process`. It ends within `--seconds` and a few more, whatever happens, and
says which rank, host or link is to blame: a training without it would wait for the missing one until its time limit.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptmedseg.errors import UserError
from adaptmedseg.launch.deadline import FAILED_EXIT, GRACE_SECONDS, end_at_all_costs, tell
from adaptmedseg.launch.meeting import Meeting, Place, ToldByFirstError

SECONDS = 30.0
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def place_of(environment: Mapping[str, str], backend: str, hosts: str, seconds: float) -> Place:
    """Read the launcher's variables. UserError where one is missing or no number."""
    for name in NEEDED:
        if name not in environment:
            raise UserError(f"{name} is not set: start this with torchrun, accelerate launch or in a Slurm job")
    try:
        rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank, port = int(environment.get("LOCAL_RANK", "0")), int(environment["MASTER_PORT"])
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE, LOCAL_RANK and MASTER_PORT must be whole numbers ({error})") from None
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        port += 1  # the launcher itself listens at MASTER_PORT
    names = [name for name in hosts.split(",") if name]
    return Place(rank, count, local_rank, environment["MASTER_ADDR"], port, backend, names, seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """The process. Exit code 0 where all is well, 3 where anything is not."""
    parser = argparse.ArgumentParser(prog="python -m adaptmedseg.launch.smoke", description=__doc__.split("\n")[0])
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo", help="what training will use")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of the whole test")
    parser.add_argument("--hosts", default="", help="hosts in the order of ranks, separated by commas, to name them")
    parser.add_argument("--same", type=Path, action="append", default=[], help="file or prepared set, alike everywhere")
    options = parser.parse_args(arguments)
    try:
        place = place_of(os.environ, options.backend, options.hosts, options.seconds)
    except UserError as error:
        tell(0, str(error))
        return FAILED_EXIT
    end_at_all_costs(place.seconds + GRACE_SECONDS, place.rank)
    try:
        summary = Meeting(place).hold(options.same)
    except ToldByFirstError:
        return FAILED_EXIT
    except UserError as error:
        for sentence in str(error).splitlines():
            tell(place.rank, sentence)
        return FAILED_EXIT
    if place.rank == 0:
        print(f"smoke test: {summary}", flush=True)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # backends in the middle of an endless wait would keep the interpreter from ending
