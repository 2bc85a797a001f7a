"""One process of a step: `srun python -m adaptmedseg.launch.process MODULE ARGUMENTS`.

Slurm's variables become those that PyTorch and Accelerate read, then the process becomes `python -m MODULE`. There is
no launcher between Slurm and the training, so that signals arrive and exit codes count.
"""

import os
import sys
from collections.abc import Mapping


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What the process needs beside Slurm's own variables; a lone one is told nothing of others."""
    count = int(environment["SLURM_NTASKS"])
    found = {"OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", environment.get("SLURM_CPUS_PER_TASK", "1"))}
    if count == 1:
        return found
    nodes = int(environment["SLURM_STEP_NUM_NODES"])
    found |= {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(count // nodes),
        "GROUP_RANK": environment["SLURM_NODEID"],
    }
    if "SLURM_GPUS_ON_NODE" not in environment:
        found["ACCELERATE_USE_CPU"] = "true"
    return found


def main() -> None:
    """Become the module."""
    os.environ.update(variables(os.environ))
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])


if __name__ == "__main__":
    main()
