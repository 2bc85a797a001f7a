"""What Slurm gave to a job: hosts, processes, and where they meet."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from adaptmedseg.errors import UserError

FIRST_PORT, PORTS = 20000, 12000  # below the ports that systems give away by themselves


@dataclass(frozen=True)
class Allocation:
    """A job as its batch script sees it. `gpus` and `processes` are those of one node."""

    job: str
    hosts: list[str]
    processes: int
    cpus: int
    gpus: int
    restarts: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Allocation":
        """Read Slurm's variables. UserError outside a job, and where processes and graphics processors do not match."""
        if "SLURM_JOB_ID" not in environment:
            raise UserError("this is no Slurm job: submit it with sbatch or adaptmedseg submit")
        nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
        tasks = int(environment.get("SLURM_NTASKS", str(nodes)))
        processes = int(environment.get("SLURM_NTASKS_PER_NODE") or max(1, tasks // nodes))
        found = cls(
            job=environment["SLURM_JOB_ID"],
            hosts=host_names(environment["SLURM_JOB_NODELIST"]),
            processes=processes,
            cpus=int(environment.get("SLURM_CPUS_PER_TASK", "1")),
            gpus=int(environment.get("SLURM_GPUS_ON_NODE", "0")),
            restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
        )
        if found.gpus and found.gpus != found.processes:
            raise UserError(
                f"the job has {found.gpus} graphics processors and {found.processes} processes a node; submit it with "
                f"--ntasks-per-node={found.gpus}, one process for each"
            )
        return found

    @property
    def all_processes(self) -> int:
        """Processes over all nodes."""
        return len(self.hosts) * self.processes

    @property
    def backend(self) -> str:
        """What processes talk over."""
        return "nccl" if self.gpus else "gloo"

    def meeting_point(self, attempt: int) -> dict[str, str]:
        """The first host, and a port that belongs to this job and attempt (0 or 1) alone, as far as numbers go."""
        port = FIRST_PORT + (2 * int(self.job) + attempt) % PORTS
        return {"MASTER_ADDR": self.hosts[0], "MASTER_PORT": str(port)}

    def srun(self) -> list[str]:
        """The beginning of a step's command, one process a task; ranks fill one host after another."""
        return [
            "srun",
            f"--nodes={len(self.hosts)}",
            f"--ntasks={self.all_processes}",
            f"--ntasks-per-node={self.processes}",
            f"--cpus-per-task={self.cpus}",  # srun does not take it over from sbatch
            "--distribution=block",
        ]


def host_names(node_list: str) -> list[str]:
    """Slurm's short form of hosts (n[1-3,7]) written out, by Slurm itself."""
    told = subprocess.run(["scontrol", "show", "hostnames", node_list], capture_output=True, text=True)
    if told.returncode or not told.stdout.split():
        raise UserError(f"scontrol cannot name the hosts of {node_list}: {told.stderr.strip() or 'no answer'}")
    return told.stdout.split()
