"""What this machine has left: free memory under every limit that counts, and the peak that was used."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # version 1 of control groups writes a huge number where there is no limit
Bytes = int


@dataclass(frozen=True)
class Free:
    """Bytes free in main memory and on the device; None where it cannot be told (and for the CPU as device)."""

    host: Bytes | None
    device: Bytes | None = None


def free_memory(device: torch.device) -> Free:
    """What a process may still take, under the machine's memory, control groups and resource limits."""
    return Free(host_free(), device_free(device))


def host_free(proc: Path = PROC, cgroup: Path = CGROUP) -> Bytes | None:
    """Free main memory: the tightest of available memory, control group and RLIMIT_AS; None where nothing is known."""
    known = [free for free in (_available(proc), _cgroup_free(proc, cgroup), _limit_free(proc)) if free is not None]
    return max(0, min(known)) if known else None


def device_free(device: torch.device) -> Bytes | None:
    """Free memory of a graphics processor, with what the allocator holds unused."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return None


def release(device: torch.device) -> None:
    """Give unused memory of the allocator back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


class PeakMemory:
    """The peak of main memory and of the device since it was made."""

    def __init__(self, device: torch.device):
        self.device = device
        self.whole_process = not _reset_peak(PROC)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> dict[str, float | str]:
        """MiB by place, for notes; where the system cannot reset its count, it is that of the whole run so far."""
        host = peak_rss(PROC)
        found: dict[str, float | str] = {}
        if host is not None:
            found["main memory"] = _mib(host)
        if self.device.type == "cuda":
            found[str(self.device)] = _mib(torch.cuda.max_memory_allocated(self.device))
        if host is not None and self.whole_process:
            found["counted"] = "over the whole run so far"
        return found


def peak_rss(proc: Path) -> Bytes | None:
    """The most main memory that this process has had in use."""
    found = _fields(proc / "self" / "status").get("VmHWM")
    if found is not None:
        return found
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class AnonymousPeak:
    """The peak of main memory that belongs to the process alone, files' pages left out, while the block runs.

    The system keeps no peak of it, so that it is looked at fifty times a second. `bytes` is None where it cannot be
    told.
    """

    def __init__(self, proc: Path = PROC):
        self.proc, self.bytes = proc, anonymous_rss(proc)
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> AnonymousPeak:
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes or 0, anonymous_rss(self.proc) or 0) or None


def anonymous_rss(proc: Path) -> Bytes | None:
    """Main memory that this process has in use now, without the pages of files."""
    return _fields(proc / "self" / "status").get("RssAnon")


def readable(size: Bytes) -> str:
    """Bytes in words, as 3.2 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _mib(size: Bytes) -> float:
    return round(size / 2**20, 1)


def _reset_peak(proc: Path) -> bool:
    with contextlib.suppress(OSError):
        (proc / "self" / "clear_refs").write_text("5", encoding="utf-8")
        return True
    return False


def _fields(path: Path) -> dict[str, Bytes]:
    """Lines 'Name:   123 kB' of a file in /proc; empty where there is none."""
    fields = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            number, _, unit = value.strip().partition(" ")
            if unit == "kB" and number.isdigit():
                fields[name] = int(number) * 1024
    return fields


def _available(proc: Path) -> Bytes | None:
    return _fields(proc / "meminfo").get("MemAvailable")


def _cgroup_free(proc: Path, cgroup: Path) -> Bytes | None:
    """The tightest limit of the process's control group and of those above it (versions 2 and 1)."""
    free = []
    for folder, limit_name, used_name in _cgroup_folders(proc, cgroup):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None and limit < _UNLIMITED:
            free.append(limit - used + _reclaimable(folder))
    return min(free) if free else None


def _cgroup_folders(proc: Path, cgroup: Path) -> Iterator[tuple[Path, str, str]]:
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroup / "memory" if controllers else cgroup
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        parts = [part for part in name.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:depth]), *names


def _reclaimable(folder: Path) -> Bytes:
    """Cached files count as used, but give way."""
    with contextlib.suppress(OSError):
        for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0


def _number(path: Path) -> Bytes | None:
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max", no limit
        return int(path.read_text(encoding="utf-8"))
    return None


def _limit_free(proc: Path) -> Bytes | None:
    """What `ulimit -v` leaves of the address space."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _fields(proc / "self" / "status").get("VmSize")
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used
