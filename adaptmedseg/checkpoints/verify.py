"""Check a model file of this project against itself, and a base against the checkpoint it was made from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from adaptmedseg.adapters.file import ADAPTER_FORMATS, load_adapter, read_adapter
from adaptmedseg.checkpoints.convert import read_source
from adaptmedseg.checkpoints.foreign import own_format, read_foreign
from adaptmedseg.checkpoints.positions import resample_weights
from adaptmedseg.checkpoints.sam import SAM_FORMAT, sam_source
from adaptmedseg.checkpoints.sizes import expected_shapes, patch_grid, shapes_of
from adaptmedseg.checkpoints.store import BASE_FORMAT, WEIGHTS_HASH, load_base, read_tensors, tensors_hash
from adaptmedseg.errors import UserError
from adaptmedseg.models.sam import Sam, SamConfig
from adaptmedseg.models.segvol import HashedTextConfig, SegVolConfig

Config = TypeVar("Config", bound=BaseModel)


@dataclass
class Verdict:
    """`digest`: the weights' hash as found; `notes`: what was checked and holds; `unchecked`: what could not be;
    `problems`: what does not hold."""

    kind: str
    digest: str
    notes: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def count_of(tensors: int) -> str:
    """'1 tensor', '2 tensors'."""
    return f"{tensors} tensor{'' if tensors == 1 else 's'}"


def verify_file(path: Path, base: str | None = None) -> Verdict:
    """Check a base or adapter file: names and shapes, finite values, the recorded hash, and an adapter's base.

    Raises UserError for a file that cannot be read or is of another kind.
    """
    kind = own_format(path)
    if kind and kind.startswith(ADAPTER_FORMATS):
        return _verify_adapter(path, base)
    file_format = SAM_FORMAT if kind == SAM_FORMAT else BASE_FORMAT
    tensors, metadata = read_tensors(path, file_format)
    verdict = Verdict("base", tensors_hash(tensors))
    if file_format == SAM_FORMAT:
        expected = shapes_of(Sam, _config_of(path, metadata, SamConfig))
    else:
        expected = expected_shapes(_config_of(path, metadata, SegVolConfig))
    odd = sorted(expected.keys() ^ tensors.keys())
    odd += [name for name, shape in expected.items() if name in tensors and tuple(tensors[name].shape) != shape]
    if odd:
        verdict.problems.append(f"does not fit the configuration: {count_of(len(odd))}, the first {odd[0]}")
    else:
        verdict.notes.append(f"{count_of(len(tensors))} fit the configuration")
    _check_values(verdict, tensors)
    try:
        json.loads(metadata["card"])
    except (KeyError, json.JSONDecodeError):
        verdict.problems.append("its model card is missing or damaged")
    recorded = metadata.get(WEIGHTS_HASH)
    if recorded is None:
        verdict.unchecked.append("the hash, for none was recorded when the file was written")
    elif recorded == verdict.digest:
        verdict.notes.append("the weights' hash is the one recorded")
    else:
        verdict.problems.append(f"the weights' hash is not the recorded {recorded}")
    return verdict


def compare(path: Path, original: Path, given: Mapping[str, object]) -> Verdict:
    """Compare a base, tensor by tensor and bit by bit, with the checkpoint it was made from.

    A base of another input size is compared with the checkpoint's weights resampled to it.
    """
    if own_format(path) == SAM_FORMAT:
        return _compare_sam(path, original, given)
    tensors, metadata = read_tensors(path, BASE_FORMAT)
    verdict = Verdict("base", tensors_hash(tensors))
    target = _config_of(path, metadata, SegVolConfig)
    own = {name: value for name, value in _flat(target).items() if name.endswith(("num_heads", "patch_size"))}
    if isinstance(target.text, HashedTextConfig):
        own["text.kind"] = "hashed"
    source = read_source(original, own | _source_size(metadata, target) | dict(given))
    config = source.sizes.config()
    actual = _flat(target)
    for name, value in given.items():
        if name in actual and actual[name] != value:
            verdict.problems.append(f"{name} is {actual[name]}, not {value}")
    wanted: dict[str, Tensor] = {name: tensor.float() for name, tensor in source.tensors.items()}
    if config.spatial_size != target.spatial_size:
        stand_in = {name: tensors[name] for name in source.new if name in tensors}
        wanted = resample_weights({**stand_in, **wanted}, patch_grid(config), patch_grid(target))
        wanted = {name: wanted[name] for name in source.tensors}
        verdict.notes.append(f"positions and norms resampled from {config.spatial_size} to {target.spatial_size}")
    _compare_tensors(verdict, tensors, wanted, original)
    if source.new:
        verdict.unchecked.append(f"{count_of(len(source.new))} that are not in {original.name} at all")
    return verdict


def _compare_sam(path: Path, original: Path, given: Mapping[str, object]) -> Verdict:
    tensors, metadata = read_tensors(path, SAM_FORMAT)
    verdict = Verdict("base", tensors_hash(tensors))
    config = _config_of(path, metadata, SamConfig)
    own = {name: getattr(config, name) for name in ("decoder_num_heads", "fit", "pixels", "alternatives")}
    source = sam_source(original, read_foreign(original), own | dict(given))
    if source.config != config:
        verdict.problems.append(f"its sizes are not those of {original.name}")
    _compare_tensors(verdict, tensors, {name: tensor.float() for name, tensor in source.tensors.items()}, original)
    return verdict


def _compare_tensors(
    verdict: Verdict, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], original: Path
) -> None:
    different: dict[str, float] = {}
    for name, tensor in wanted.items():
        found = tensors.get(name)
        if found is None or found.shape != tensor.shape:
            different[name] = float("inf")
        elif not torch.equal(found.float(), tensor):
            different[name] = float((found.float() - tensor).abs().max())
    equal = len(wanted) - len(different)
    verdict.notes.append(f"{equal} of {len(wanted)} tensors of {original.name} are equal to the bit")
    if different:
        worst = max(different, key=lambda name: different[name])
        verdict.problems.append(
            f"not equal to {original.name}: {count_of(len(different))}, most {worst}: by up to {different[worst]:.3g}"
        )


def _verify_adapter(path: Path, base: str | None) -> Verdict:
    card, tensors = read_adapter(path)
    verdict = Verdict("adapter", tensors_hash(tensors))
    _check_values(verdict, tensors)
    try:
        model, _ = load_base(base or card.base)
    except UserError as error:
        if base is not None:
            raise
        verdict.unchecked.append(f"shapes, for its base, of hash {card.base_hash}, is not here ({error})")
        return verdict
    try:
        load_adapter(path, model)
    except UserError as error:
        verdict.problems.append(str(error))
    else:
        verdict.notes.append(
            f"{count_of(len(tensors))} fit its base '{base or card.base}', whose hash is the recorded one, and give "
            "the stored output"
        )
    return verdict


def _check_values(verdict: Verdict, tensors: Mapping[str, Tensor]) -> None:
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        verdict.problems.append(f"values that are not finite: {count_of(len(bad))}, the first {bad[0]}")
    else:
        verdict.notes.append("all values are finite")


def _config_of(path: Path, metadata: Mapping[str, str], kind: type[Config]) -> Config:
    try:
        return kind.model_validate_json(metadata["config"])
    except (KeyError, ValidationError):
        raise UserError(f"{path}: its model card is damaged; copy or download the file again") from None


def _source_size(metadata: Mapping[str, str], target: SegVolConfig) -> dict[str, object]:
    """The input size that the checkpoint had, as the card tells it."""
    try:
        card = json.loads(metadata.get("card", "{}"))
    except json.JSONDecodeError:
        return {}
    return {"spatial_size": tuple(card.get("resampled_from", target.spatial_size))}


def _flat(config: SegVolConfig) -> dict[str, object]:
    values = dict(config)
    text = values.pop("text")
    return values | {f"text.{name}": value for name, value in dict(text).items() if name != "kind"}
