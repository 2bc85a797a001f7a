"""Checkpoints of a training on disk: whole or absent, checked by hash, the last few kept. Nothing is ever unpickled."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adaptmedseg.data.files import file_sha256
from adaptmedseg.errors import UserError

CHECKPOINT_FORMAT = "adaptmedseg-checkpoint-1"
TENSORS, FACTS, MANIFEST = "state.safetensors", "state.json", "manifest.json"
PARTIAL, DAMAGED = ".partial", "damaged-"


@dataclass(frozen=True)
class Checkpoint:
    """A training's state after `step` steps: `tensors`, and `facts` that JSON can hold."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


class CheckpointFolder:
    """Up to `keep` checkpoints in a folder of their own, which appears with the first of them.

    A checkpoint is a folder of three files. The manifest states the others' sizes and SHA-256, and its own seal. It is
    written under a temporary name, flushed to the disk and renamed.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps of the checkpoints, oldest first; whether they can be read is not looked at."""
        if not self.folder.is_dir():
            return []
        found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:08d}"

    def write(self, checkpoint: Checkpoint) -> Path:
        """Add a checkpoint, then let go of those beyond `keep`. OSError where it cannot be written; the others stay."""
        target = self.path(checkpoint.step)
        partial = target.with_name(target.name + PARTIAL)
        self._clear()
        try:
            partial.mkdir(parents=True)
            _write_files(partial, checkpoint)
            if target.exists():
                shutil.rmtree(target)
            os.replace(partial, target)
            _flush(self.folder)
        except SafetensorError as error:  # safetensors' own name for what the system said
            raise OSError(str(error)) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self.prune()
        return target

    def prune(self) -> None:
        """Let go of the oldest checkpoints beyond `keep`."""
        for step in self.steps()[: -self.keep]:
            self._remove(self.path(step))

    def remove_all(self) -> None:
        """Let go of every checkpoint, one whole one after the other, and of the folder."""
        for step in self.steps():
            self._remove(self.path(step))
        shutil.rmtree(self.folder, ignore_errors=True)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and a sentence for each newer one that is not; those are set aside.

        Raises UserError where there are checkpoints and none is whole.
        """
        told: list[str] = []
        for step in reversed(self.steps()):
            try:
                found = read_checkpoint(self.path(step))
            except UserError as error:
                told.append(str(error))
                continue
            for damaged in [later for later in self.steps() if later > step]:
                aside = self.folder / f"{DAMAGED}{damaged:08d}"
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(self.path(damaged), aside)
            return found, told
        if told:
            raise UserError(f"{self.folder}: none of its checkpoints can be used ({told[0]}); remove it to start anew")
        return None, []

    def _clear(self) -> None:
        """Remove what an end in the middle of writing left."""
        for path in self.folder.glob(f"*{PARTIAL}") if self.folder.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        """Take a checkpoint's name first, so that half of it is never taken for one."""
        doomed = path.with_name(path.name + PARTIAL)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint, every byte checked. UserError, naming the file, for one that is not whole."""
    manifest = _read_manifest(folder)
    for name, stated in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: is missing")
        if path.stat().st_size != stated["bytes"]:
            raise UserError(f"{path}: has {path.stat().st_size} bytes instead of {stated['bytes']}")
        if file_sha256(path) != stated["sha256"]:
            raise UserError(f"{path}: was changed after it was written (its SHA-256 is another)")
    return Checkpoint(
        manifest["step"], load_file(folder / TENSORS), json.loads((folder / FACTS).read_text(encoding="utf-8"))
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        seal = manifest.pop("seal")
    except FileNotFoundError:
        raise UserError(f"{path}: is missing") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{path}: is damaged") from None
    if manifest.get("format") != CHECKPOINT_FORMAT:
        found = manifest.get("format")
        raise UserError(f"{path}: holds {found}, and this version reads {CHECKPOINT_FORMAT}")
    if seal != _seal(manifest) or set(manifest["files"]) != {TENSORS, FACTS}:
        raise UserError(f"{path}: is damaged")
    return manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}, folder / TENSORS)
    (folder / FACTS).write_text(json.dumps(checkpoint.facts), encoding="utf-8")
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in (TENSORS, FACTS)
    }
    manifest = {"format": CHECKPOINT_FORMAT, "step": checkpoint.step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest | {"seal": _seal(manifest)}, indent=1), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _flush(path)


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk and not in a cache only."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
