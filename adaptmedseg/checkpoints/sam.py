"""SAM's published checkpoints (and MedSAM's, which have the same layout) and this project's files of SAM models."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from adaptmedseg.checkpoints.fresh import fresh_config
from adaptmedseg.checkpoints.known import KNOWN
from adaptmedseg.checkpoints.sizes import check_shapes, count_layers, shapes_of
from adaptmedseg.checkpoints.source import Checkpoint, check_target, finite_values, origin
from adaptmedseg.checkpoints.store import WEIGHTS_HASH, model_path, read_base, write_base
from adaptmedseg.errors import UserError
from adaptmedseg.models.sam import SAM_B, SAM_H, SAM_L, SAM_SMALL, Sam, SamConfig

SAM_FORMAT = "adaptmedseg-sam-1"
FRESH_SAM = {"fresh:sam-small": SAM_SMALL, "fresh:sam-b": SAM_B, "fresh:sam-l": SAM_L, "fresh:sam-h": SAM_H}
PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
PATCH = "image_encoder.patch_embed.proj.weight"
BLOCKS = "image_encoder.blocks."
MATRIX = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
MEDSAM: dict[str, object] = {"fit": "stretch", "pixels": "min-max", "alternatives": False}


@dataclass(frozen=True)
class SamSource(Checkpoint):
    """A published SAM, read and checked."""

    config: SamConfig


def sam_prefix(keys: Iterable[str]) -> str | None:
    """What stands before a SAM's keys in a file, mostly nothing; None where they are no SAM's."""
    return next((key.removesuffix(PATCH) for key in keys if key.endswith(PATCH)), None)


def translate_sam(tensors: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """A file's tensors under this project's names, the file's key of each name, and the keys of no known part.

    The encoder is timm's, which calls its MLP's layers fc1 and fc2. The matrix of the positional encoding has rows for
    x and y there, for y and x here, where coordinates have the order of the array.
    """
    loaded: dict[str, Tensor] = {}
    keys: dict[str, str] = {}
    strange = []
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or not name.startswith(PARTS):
            strange.append(key)
            continue
        if name.startswith(BLOCKS):
            name = name.replace(".mlp.lin", ".mlp.fc")
        loaded[name] = tensor.flip(0) if name == MATRIX else tensor
        keys[name] = key
    return loaded, keys, strange


def sam_source(path: Path, tensors: Mapping[str, Tensor], given: Mapping[str, object]) -> SamSource:
    """Check a SAM's tensors as a file has them. Raises UserError naming file and key.

    `given` are what weights cannot tell, as `--config` names them: decoder_num_heads where the decoder has not the
    release's width, and the conventions fit, pixels and alternatives. A file whose name begins with "medsam" has
    MedSAM's conventions unless they are given.
    """
    prefix = sam_prefix(tensors)
    if prefix is None:
        raise UserError(f"{path}: is no SAM checkpoint (no key ends with {PATCH}); give the publisher's file")
    loaded, keys, strange = translate_sam(tensors, prefix)
    layers = count_layers(loaded, BLOCKS)
    expected = shapes_of(Sam, SAM_B.model_copy(update={"num_layers": max(layers, 1)}))
    missing = [name for name in expected if name not in loaded]
    strange += [keys[name] for name in loaded if name not in expected]
    for verb, names in (("lacks", missing), ("has, unknown to every rule,", strange)):
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise UserError(
                f"{path}: {verb} the key {names[0]}{more} (SAM layout); give the publisher's unchanged file"
            )
    config = _config(path, loaded, given)
    check_shapes(path, loaded, keys, shapes_of(Sam, config))
    known_from = "medsam_vit_b.pth" if config.pixels == "min-max" else "sam_vit_*.pth"
    return SamSource(path, "SAM release", known_from, loaded, keys, {}, [], config)


def _config(path: Path, tensors: Mapping[str, Tensor], given: Mapping[str, object]) -> SamConfig:
    """Sizes as the weights show them, conventions as given."""
    conventions = MEDSAM if path.name.lower().startswith("medsam") else {}
    seen = _seen(path, tensors)
    for key, value in given.items():
        if key in seen and seen[key] != value:
            raise UserError(f"{path}: {key} is {seen[key]} in its weights, not {value}; leave --config {key} out")
    if seen["prompt_dim"] != SAM_B.prompt_dim and "decoder_num_heads" not in given:
        raise UserError(
            f"{path}: weights of these sizes don't tell decoder_num_heads; give them: --config decoder_num_heads=N"
        )
    try:
        config = SamConfig.model_validate({**conventions, **seen, **given})
        shapes_of(Sam, config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg'].lower()}; correct --config {where}") from None
    except (ValueError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        raise UserError(f"{path}: its sizes make no model ({error}); give the publisher's file") from None
    return config


def _seen(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, object]:
    layers = count_layers(tensors, BLOCKS)
    relative = [tensors[f"{BLOCKS}{i}.attn.rel_pos_h"] for i in range(layers)]
    for name, ndim in ((PATCH, 4), ("image_encoder.pos_embed", 4), ("image_encoder.neck.0.weight", 4)):
        if tensors[name].ndim != ndim:
            raise UserError(f"{path}: its tensor {name} has {tensors[name].ndim} axes; give the publisher's file")
    width, _, patch, _ = tensors[PATCH].shape
    cells = tensors["image_encoder.pos_embed"].shape[1]
    spans = [(len(table) + 1) // 2 for table in relative]  # relative positions of n cells are 2n − 1
    window = min(spans)
    return {
        "image_size": cells * patch,
        "patch_size": patch,
        "embed_dim": width,
        "num_layers": layers,
        "num_heads": width // relative[0].shape[-1],
        "mlp_ratio": len(tensors[f"{BLOCKS}0.mlp.fc1.weight"]) / width,
        "window_size": window,
        "global_blocks": tuple(i for i, span in enumerate(spans) if span == cells and span > window),
        "prompt_dim": len(tensors["image_encoder.neck.0.weight"]),
        "mask_channels": len(tensors["prompt_encoder.mask_downscaling.3.weight"]),
        "decoder_mlp_dim": len(tensors["mask_decoder.transformer.layers.0.mlp.lin1.weight"]),
        "iou_hidden_dim": len(tensors["mask_decoder.iou_prediction_head.layers.0.weight"]),
    }


def convert_sam(
    source: SamSource, out: Path, *, name: str, licence: str | None = None, overwrite: bool = False
) -> dict[str, object]:
    """Write a SAM file; returns its card with the hash of the weights. Raises UserError as `convert.convert`."""
    check_target(source, out, overwrite=overwrite)
    medsam = source.config.pixels == "min-max"
    card: dict[str, object] = {
        "name": name,
        "model": "MedSAM (Ma et al. 2024)" if medsam else "SAM (Kirillov et al., arXiv:2304.02643)",
        "trained_on": "medical images, by the publisher" if medsam else "SA-1B photographs, by the publisher",
        "sizes": source.config.model_dump(mode="json"),
        **origin(source, licence),
    }
    metadata = write_base(out, finite_values(source), source.config, card, SAM_FORMAT)
    return card | {WEIGHTS_HASH: metadata[WEIGHTS_HASH]}


def save_sam(path: Path, model: Sam, card: Mapping[str, object]) -> None:
    """Write a SAM with its card (name, training data, licence, ...)."""
    write_base(path, model.state_dict(), model.config, card, SAM_FORMAT)


def load_sam(name: str, seed: int = 0) -> tuple[Sam, dict[str, object]]:
    """A SAM in float32 and its card, by known name ("sam-b"), file, run folder, or as "fresh:sam-small".

    Raises UserError for a missing, damaged or foreign file.
    """
    if fresh := fresh_config(name, FRESH_SAM, seed):
        config, plain, seed = fresh
        torch.manual_seed(seed)
        return Sam(config), {"name": plain, "trained_on": "nothing: fresh weights", "seed": seed}
    path = model_path(name)
    if name in KNOWN and not path.exists():
        raise UserError(KNOWN[name].absent())
    if not path.suffix and not path.exists():
        known = ", ".join([*(known for known in KNOWN if known.startswith("sam")), *FRESH_SAM])
        raise UserError(f"model '{name}': neither a known name ({known}) nor a file; give one of them")
    return read_base(path, SAM_FORMAT, SamConfig, Sam)
