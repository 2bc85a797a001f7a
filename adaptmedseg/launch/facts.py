"""What a process says of itself before training: whatever has to be the same on all of them."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

import adaptmedseg
from adaptmedseg.data.files import file_sha256
from adaptmedseg.data.prepared.manifest import MANIFEST

LIBRARIES = ("torch", "accelerate", "monai", "numpy", "safetensors")
MISSING = "missing"
SHOWN = 24  # characters of a value in a sentence: enough of a hash or a version


@dataclass(frozen=True)
class Facts:
    """`same` has to agree between processes; `trouble` says in a sentence what this process lacks by itself; `address`
    and `port` are where it listens for the others."""

    host: str
    same: dict[str, str]
    trouble: str = ""
    address: str = ""
    port: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Facts":
        return cls(**json.loads(text))


def versions() -> dict[str, str]:
    """Versions of what computes, and a hash of this package's own files."""
    found = {"Python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    return found | {"adaptmedseg": adaptmedseg.__version__, "adaptmedseg's code": code_hash()}


def code_hash() -> str:
    """A hash of the package's Python files and configurations, by name and content."""
    root = Path(adaptmedseg.__file__).parent
    total = hashlib.sha256()
    for path in sorted(path for kind in ("*.py", "*.yaml") for path in root.rglob(kind)):
        total.update(f"{path.relative_to(root)} {file_sha256(path)}\n".encode())
    return total.hexdigest()


def contents(paths: Sequence[Path]) -> dict[str, str]:
    """The hash of each file, for a folder that of the manifest in it, or the word that it is missing here."""
    found = {}
    for path in paths:
        file = path / MANIFEST if path.is_dir() else path
        found[str(path)] = file_sha256(file) if file.is_file() else MISSING
    return found


def gpu_trouble(backend: str, local_rank: int) -> str:
    """Why this process cannot use its graphics processor, or nothing where it can or needs none."""
    if backend != "nccl":
        return ""
    count = torch.cuda.device_count()
    if local_rank >= count:
        return f"needs graphics processor {local_rank} and there are {count} here (numbered from 0)"
    try:
        torch.ones(1, device=torch.device("cuda", local_rank)).sum().item()
    except RuntimeError as error:
        return f"cannot use graphics processor {local_rank}: {str(error).splitlines()[0]}"
    return ""


def differences(all_facts: Mapping[int, Facts]) -> list[str]:
    """A sentence for every process that is in trouble or says something else than the first one."""
    first = all_facts[0]
    told = []
    for rank, facts in sorted(all_facts.items()):
        if facts.trouble:
            told.append(f"rank {rank} on {facts.host} {facts.trouble}")
        for name, value in facts.same.items():
            expected = first.same.get(name, MISSING)
            if MISSING in (value, expected) and value == expected:
                told.append(f"{name} is missing on {facts.host} (rank {rank})")
            elif value != expected:
                told.append(
                    f"{name} differs: {value[:SHOWN]} on {facts.host} (rank {rank}), "
                    f"{expected[:SHOWN]} on {first.host} (rank 0)"
                )
    return told
