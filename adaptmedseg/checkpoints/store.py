"""Base models as one safetensors file: weights, configuration and model card. Nothing is ever unpickled."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adaptmedseg.checkpoints.foreign import is_pytorch
from adaptmedseg.checkpoints.fresh import fresh_config
from adaptmedseg.checkpoints.known import KNOWN
from adaptmedseg.data.download import file_hash as file_hash
from adaptmedseg.errors import UserError
from adaptmedseg.models.segvol import RELEASED, SMALL, SegVol, SegVolConfig

BASE_FORMAT = "adaptmedseg-base-1"
WEIGHTS_HASH = "weights_sha256"
FRESH = {"fresh:small": SMALL, "fresh:released": RELEASED}
SHIPPED = {"small": "small_ct_base.safetensors"}
MODEL_FILE = "model.safetensors"
KINDS = {  # what formats are, for messages
    BASE_FORMAT: "a base of volumes",
    "adaptmedseg-sam-1": "a SAM, for pictures",
    "adaptmedseg-sam-adapter-1": "an adapter of a SAM",
    "adaptmedseg-adapter-2": "an adapter of a base of volumes",
    "adaptmedseg-unet-1": "a U-Net",
}
Config = TypeVar("Config", bound=BaseModel)
Model = TypeVar("Model", bound=nn.Module)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically: it appears whole or not at all.

    Tensors are not copied on the way, but for those that share their memory with another: a file holds each by itself.
    """
    contiguous = _apart({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(contiguous, temporary, metadata)
        temporary.chmod(0o644)  # safetensors leaves it to its owner alone, and models are shared
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: cannot be written ({reason}); free some space or choose another folder") from None


def recorded_hash(path: Path) -> str | None:
    """The hash of its weights that a base file records; None where there is no such file or hash. The file's weights
    are not read."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    return metadata.get(WEIGHTS_HASH) if metadata.get("format") == BASE_FORMAT else None


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none in the memory of another."""
    taken: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in taken else tensor
        taken.add(memory)
    return apart


def read_tensors(path: Path, expected_format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that this project wrote. UserError on anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != expected_format:
                found = _kind_of(metadata.get("format", "no format name"))
                wanted = _kind_of(expected_format)
                raise UserError(
                    f"{path}: holds {found}, expected {wanted}; give one of that kind, written by adaptmedseg"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise UserError(f"{path}: no such model file; give the path of a .safetensors file") from None
    except (SafetensorError, OSError) as error:
        if path.is_dir():
            raise UserError(f"{path}: is a folder without {MODEL_FILE}; give a finished run or a file") from None
        if is_pytorch(path):
            raise UserError(
                f"{path}: is a PyTorch checkpoint; make a base of it first, with `adaptmedseg weights convert`"
            ) from None
        raise UserError(f"{path}: not a readable safetensors file ({error}); copy or download it again") from None


def _kind_of(stated: str) -> str:
    """A format's name with what it is, for messages."""
    return f"{stated} ({KINDS[stated]})" if stated in KINDS else stated


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names and float32 values of the base's weights: what adapters are bound to."""
    return tensors_hash(model.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, in their order, and float32 values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        values = tensor.detach().cpu().float().contiguous().numpy()
        digest.update(values.reshape(-1).data)
    return digest.hexdigest()


def save_base(path: Path, model: SegVol, card: dict[str, object], dtype: torch.dtype = torch.float32) -> None:
    """Write a base model with its card (name, training data, licence, ...)."""
    write_base(path, {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, model.config, card)


def write_base(
    path: Path,
    tensors: Mapping[str, Tensor],
    config: BaseModel,
    card: Mapping[str, object],
    file_format: str = BASE_FORMAT,
) -> dict[str, str]:
    """Write a base file from its tensors; returns its metadata, the hash of its weights among them."""
    metadata = {
        "format": file_format,
        "config": config.model_dump_json(),
        "card": json.dumps(card),
        WEIGHTS_HASH: tensors_hash(tensors),
    }
    write_tensors(path, tensors, metadata)
    return metadata


def model_path(name: str) -> Path:
    """The file behind a known name, a run folder or a path."""
    if name in SHIPPED:
        return Path(str(resources.files("adaptmedseg.assets"))) / SHIPPED[name]
    if name in KNOWN:
        return KNOWN[name].converted
    inside = Path(name) / MODEL_FILE
    return inside if inside.is_file() else Path(name)


def load_base(name: str, seed: int = 0) -> tuple[SegVol, dict[str, object]]:
    """A base model in float32 and its card, by known name ("small", "segvol"), file, run folder, or as "fresh:small",
    whose weights are random, drawn by `seed` or by that of "fresh:small@3".

    Raises UserError for a missing, damaged or foreign file.
    """
    if fresh := fresh_config(name, FRESH, seed):
        config, plain, seed = fresh
        torch.manual_seed(seed)
        return SegVol(config), {"name": plain, "trained_on": "nothing: fresh weights", "seed": seed}
    path = model_path(name)
    if name in KNOWN and not path.exists():
        raise UserError(KNOWN[name].absent())
    if not path.suffix and not path.exists():
        known = ", ".join([*SHIPPED, *KNOWN, *FRESH])
        raise UserError(f"model or base '{name}': neither a known name ({known}) nor a file; give one of them")
    return read_base(path, BASE_FORMAT, SegVolConfig, SegVol)


def read_base(
    path: Path, file_format: str, config_type: type[Config], build: Callable[[Config], Model]
) -> tuple[Model, dict[str, object]]:
    """The model in a base file, in float32, and its card. UserError for a missing, damaged or foreign file."""
    tensors, metadata = read_tensors(path, file_format)
    if metadata.get(WEIGHTS_HASH, digest := tensors_hash(tensors)) != digest:
        raise UserError(
            f"{path}: its weights are not those that were written (hash {digest[:12]}); copy the file again"
        )
    try:
        model = build(config_type.model_validate_json(metadata["config"]))
        card = json.loads(metadata["card"])
    except (KeyError, ValidationError, json.JSONDecodeError):
        raise UserError(f"{path}: its model card is damaged; copy or download the file again") from None
    wanted = model.state_dict()
    wrong = sorted(wanted.keys() ^ tensors.keys()) or [n for n in wanted if wanted[n].shape != tensors[n].shape]
    if wrong:
        raise UserError(f"{path}: does not fit its own configuration (first difference: {wrong[0]}); download it again")
    model.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    return model, card
