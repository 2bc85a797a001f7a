"""A real Slurm on this machine, as many nodes as wanted, all of its state in one folder.

Every node is a slurmd with a host name of its own. Daemons are ended by the process ids that they wrote.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
DEBIAN_PACKAGES = "munge slurmctld slurmd slurm-client"
OPEN_STATES = {"PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD"}
START_SECONDS, STOP_SECONDS = 30.0, 20.0

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
KillWait=120
MailProg=/bin/true
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{nodes}
PartitionName=test Nodes=ALL Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} CoresPerSocket={cpus} RealMemory={memory} Gres=gpu:2"


def why_not() -> str:
    """Why Slurm cannot be started here, or nothing where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian and Ubuntu: apt-get install {DEBIAN_PACKAGES})"
    if os.geteuid() != 0:
        return "Slurm's daemons are started by root alone"
    allowed = subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode == 0
    return "" if allowed else "this machine gives no name spaces, which the nodes need for their names"


@dataclass(frozen=True)
class Cluster:
    """A running Slurm: programs that get `environment` talk to it."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str | Path, check: bool = True) -> str:
        """What a Slurm command printed."""
        done = subprocess.run([*map(str, command)], env=self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str | Path) -> str:
        """Submit by sbatch; returns the job's number."""
        return self.call("sbatch", "--parsable", *arguments).split(";")[0]

    def show(self, job: str, key: str) -> list[str]:
        """One fact of a job, of each task where it is an array."""
        return re.findall(rf"(?:^|\s){key}=(\S*)", self.call("scontrol", "show", "job", "-o", job))

    def wait(self, job: str, seconds: float) -> list[str]:
        """The states that a job (each task of an array) ends in. AssertionError where it is still there."""
        ends = time.monotonic() + seconds
        while set(states := self.show(job, "JobState")) & OPEN_STATES:
            assert time.monotonic() < ends, f"job {job} is {states}\n{self.call('scontrol', 'show', 'job', job)}"
            time.sleep(0.3)
        return sorted(states)


@contextmanager
def running(folder: Path, nodes: int) -> Iterator[Cluster]:
    """Start daemons for nodes n1, n2, ...; within the block they take jobs. Afterwards all of it is ended."""
    environment = _prepare(folder, nodes)
    cluster = Cluster(folder, environment)
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # else all of it stays behind
    try:
        _start(folder, nodes, environment)
        _wait_until_idle(cluster, nodes)
        try:
            yield cluster
        finally:
            _clear(cluster)
    finally:
        for pid_file in [*sorted(folder.glob("slurmd.*.pid")), folder / "slurmctld.pid", folder / "munge.pid"]:
            _end(pid_file)
        signal.signal(signal.SIGTERM, before)


def _prepare(folder: Path, nodes: int) -> dict[str, str]:
    """Write all configuration; returns the environment for clients and daemons."""
    for name in ("munge", "state"):
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(0o700)
    folder.chmod(0o755)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    cpus, memory = os.cpu_count() or 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 512
    names = [f"n{number}" for number in range(1, nodes + 1)]
    lines = [NODE.format(name=name, port=_free_port(), cpus=cpus, memory=memory) for name in names]
    conf = CONF.format(host=socket.gethostname(), port=_free_port(), folder=folder, nodes="\n".join(lines))
    (folder / "slurm.conf").write_text(conf, encoding="utf-8")
    (folder / "gres.conf").write_text(
        "Name=gpu Count=2 File=/dev/tty[0-1]\n", encoding="utf-8"
    )  # no graphics processors: counted alone
    hosts = Path("/etc/hosts").read_text(encoding="utf-8").rstrip("\n")
    (folder / "hosts").write_text("\n".join([hosts, *(f"127.0.0.1 {name}" for name in names), ""]), encoding="utf-8")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
        "SLURM_CONF": str(folder / "slurm.conf"),
    }


def _start(folder: Path, nodes: int, environment: dict[str, str]) -> None:
    def daemon(*command: str) -> None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command[0]}: {done.stderr}"

    munge = {"key-file": "munge/key", "seed-file": "munge/seed", "log-file": "munge/log", "pid-file": "munge.pid"}
    # By force: munged wants to be asked before it uses a folder that others cannot enter, such as a test's own.
    daemon(
        "munged",
        "--force",
        *(f"--{key}={folder}/{name}" for key, name in munge.items()),
        f"--socket={folder}/munge.socket",
    )
    daemon("slurmctld")
    script = 'hostname "$1" && mount --bind "$2" /etc/hosts && exec slurmd -N "$1"'
    for number in range(1, nodes + 1):
        (folder / f"spool.n{number}").mkdir()
        daemon("unshare", "--uts", "--mount", "sh", "-c", script, "sh", f"n{number}", f"{folder}/hosts")


def _wait_until_idle(cluster: Cluster, nodes: int) -> None:
    ends = time.monotonic() + START_SECONDS
    while len(set(cluster.call("sinfo", "-hN", "-t", "idle", "-o", "%N", check=False).split())) < nodes:
        logs = "\n".join(path.read_text(encoding="utf-8")[-2000:] for path in sorted(cluster.folder.glob("*.log")))
        assert time.monotonic() < ends, f"the nodes did not come up\n{logs}"
        time.sleep(0.2)


def _clear(cluster: Cluster) -> None:
    """Cancel all jobs and wait until their processes are gone, which outlive the daemons otherwise."""
    cluster.call("scancel", "--quiet", "--user=root", check=False)
    ends = time.monotonic() + STOP_SECONDS
    while cluster.call("squeue", "--noheader", check=False) and time.monotonic() < ends:
        time.sleep(0.2)


def _end(pid_file: Path) -> None:
    """End a daemon and wait until it is gone."""
    if not pid_file.is_file():
        return
    pid = int(pid_file.read_text(encoding="utf-8"))
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    ends = time.monotonic() + STOP_SECONDS
    while _lives(pid):
        if time.monotonic() > ends:
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.1)


def _lives(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be collected by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
