"""Checkpoints that others wrote, as tables of tensors. Pickled code is never run."""

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adaptmedseg.errors import UserError

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
CONTAINERS = ("model", "state_dict")
OWN_FORMATS = "adaptmedseg-"
# What damaged files make torch.load raise; which one depends on where the damage lies.
DAMAGE = (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError)


def read_foreign(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch checkpoint (zip or older) or a safetensors file, by the file's own keys.

    A table under "model" or "state_dict" is taken where there is one; what stands beside it (optimizer, epoch) is not
    looked at. Tensors are memory-mapped where the format allows it, so that reading costs no memory. Raises UserError
    for a file that is missing, damaged, no checkpoint, this project's own, or that holds more than tensors.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a checkpoint file or a known name") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a checkpoint file") from None
    if head[8:] == b"{":  # first, for the length of the header before it may begin as a pickle does
        return _read_safetensors(path)
    if head.startswith(ZIP):
        _check_sums(path)
        return _tensors(path, _load(path, mapped=True))
    if head.startswith(PICKLE):
        return _tensors(path, _load(path, mapped=False))
    raise UserError(f"{path}: is no checkpoint, neither PyTorch's nor safetensors; give the publisher's file")


def is_pytorch(path: Path) -> bool:
    """Whether a file begins as PyTorch's checkpoints do."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    # A safetensors file begins with the length of its header, whose first byte may be that of a pickle.
    return head.startswith((ZIP, PICKLE)) and head[8:] != b"{"


def _check_sums(path: Path) -> None:
    """Hold a zip file against its own checksums, which torch.load passes over where it maps the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError) as error:
        raise UserError(f"{path}: is truncated or damaged ({error}); copy or download it again") from None
    if bad is not None:
        raise UserError(f"{path}: is damaged ({bad} is not what was written); copy or download it again")


def own_format(path: Path) -> str | None:
    """The format that a safetensors file of this project names; None for every other file."""
    name = (_metadata(path) or {}).get("format", "")
    return name if name.startswith(OWN_FORMATS) else None


def is_readable(path: Path) -> bool:
    """Whether safetensors reads the file's header and finds the file as long as that says."""
    return _metadata(path) is not None


def _metadata(path: Path) -> dict[str, str] | None:
    """What a safetensors file says of itself; None where the file cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    own = own_format(path)
    if own:
        raise UserError(
            f"{path}: is a file of this project already ({own}); use it as it is with --base or --model, or look at it "
            "with `adaptmedseg weights inspect`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is truncated or damaged ({error}); copy or download it again") from None


def _load(path: Path, *, mapped: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from None
    except DAMAGE as error:
        if "TorchScript" in str(error):
            raise UserError(_refusal(path, "a TorchScript program")) from None
        raise UserError(f"{path}: is truncated or damaged, or no checkpoint; copy or download it again") from None


def _refusal(path: Path, message: str) -> str:
    """The sentence for a file that asks for more than tensors; `message` is torch's own, many lines long."""
    asked = re.search(r"GLOBAL (\S+)", message) or re.search(r"(a TorchScript program|[Uu]nsupported \w+ \S+)", message)
    what = asked.group(1) if asked else "unknown objects"
    return (
        f"{path}: holds more than tensors ({what}), and code out of a file is never run; where you trust it, load it "
        "elsewhere and save the dictionary of its tensors alone with torch.save or safetensors"
    )


def _tensors(path: Path, content: object) -> dict[str, Tensor]:
    table = content
    if isinstance(content, Mapping):
        table = next((content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)), content)
    if not isinstance(table, Mapping) or not table:
        kind = "an empty table" if isinstance(table, Mapping) else f"a {type(table).__name__}"
        raise UserError(f"{path}: holds {kind} instead of a table of tensors; give the publisher's file")
    for key, value in table.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise UserError(
                f"{path}: its entry {key!r} is no plain tensor but a {type(value).__name__}; give the publisher's file"
            )
    return dict(table)
