"""From a published SegVol checkpoint to one base file of this project, with a card that says what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adaptmedseg.checkpoints.foreign import read_foreign
from adaptmedseg.checkpoints.positions import resample_weights
from adaptmedseg.checkpoints.sizes import Sizes, check_shapes, deduce_sizes, expected_names, expected_shapes, patch_grid
from adaptmedseg.checkpoints.source import Checkpoint, check_target, finite_values, origin
from adaptmedseg.checkpoints.store import WEIGHTS_HASH, write_base
from adaptmedseg.checkpoints.translate import ENCODER, LAYOUTS, Translation, find_layout, translate
from adaptmedseg.errors import UserError
from adaptmedseg.models.segvol import SegVol, SegVolConfig, Size3
from adaptmedseg.modules.text import SENTENCE

PREPROCESSING = {
    "intensity": "foreground above the mean, clipped at its 0.05 and 99.95 percentiles, standardised, scaled to [0, 1]",
    "view": "nearest-exact resize of the foreground's box",
    "sentence": SENTENCE.format("{name}"),
}


@dataclass(frozen=True)
class Source(Checkpoint):
    """A published SegVol, read and checked; `new` is not empty for an encoder alone."""

    sizes: Sizes


def read_source(path: Path, given: Mapping[str, object]) -> Source:
    """Read a checkpoint in any of the layouts and check that every key is known and every shape right.

    `given` are sizes that weights cannot tell, as `--config` names them. Raises UserError naming file and key.
    """
    return segvol_source(path, read_foreign(path), given)


def segvol_source(path: Path, tensors: Mapping[str, Tensor], given: Mapping[str, object]) -> Source:
    """As `read_source`, for the tensors of a file by its own keys."""
    layout = find_layout(tensors)
    if layout is None:
        begins = ", ".join(f"'{one.prefix}{one.sign}'" for one in LAYOUTS)
        first = next(iter(tensors))
        raise UserError(
            f"{path}: is no SegVol checkpoint, and no SAM: no key begins with {begins} (its first key is '{first}')"
        )
    found = translate(tensors, layout)
    _check_names(path, found)
    sizes = deduce_sizes(path, found.loaded, given, encoder_only=layout.parts == ENCODER)
    config = sizes.stand_in()
    check_shapes(path, found.loaded, found.keys, expected_shapes(config))
    new = [name for name in expected_shapes(config) if name not in found.loaded]
    return Source(path, layout.name, layout.known_from, found.loaded, found.keys, found.left_out, new, sizes)


def _check_names(path: Path, found: Translation[Tensor]) -> None:
    """UserError for a name that the layout promises and that is missing, and for one that nobody knows."""
    layout, expected = found.layout, expected_names(found.loaded)
    missing = [name for name in expected if name not in found.loaded and name.startswith(layout.parts)]
    strange = found.strange + [found.keys[name] for name in found.loaded if name not in expected]
    if not missing and not strange:
        return
    as_written = [layout.prefix + name.removeprefix(layout.target) for name in missing]
    parts = [
        f"{verb} the key {keys[0]}{f' and {len(keys) - 1} more' if keys[1:] else ''}"
        for verb, keys in (("lacks", as_written), ("has, unknown to every rule,", strange))
        if keys
    ]
    raise UserError(f"{path}: {' and '.join(parts)} ({layout.name} layout); give the publisher's unchanged file")


def convert(
    source: Source,
    out: Path,
    *,
    name: str,
    licence: str | None = None,
    spatial_size: Size3 | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, object]:
    """Write a base file; returns its card with the hash of the weights.

    Tensors go from the mapped source to the new file one by one. `licence` is the publisher's where it is not given and
    the file is known by its checksum. `spatial_size` asks for another input size (see `positions`). What the source
    lacks starts from fresh weights drawn with `seed`. Raises UserError where `out` exists and `overwrite` is off, where
    a size is still unseen, and for values that are not finite.
    """
    check_target(source, out, overwrite=overwrite)
    config = source.sizes.config()
    target = _resized(source.path, config, spatial_size)
    tensors = finite_values(source)
    if source.new:
        tensors |= _fresh(config, source.new, seed)
    if target != config:
        tensors = resample_weights(tensors, patch_grid(config), patch_grid(target))
    card = _card(source, config, target, name, licence, seed)
    metadata = write_base(out, tensors, target, card)
    return card | {WEIGHTS_HASH: metadata[WEIGHTS_HASH]}


def _fresh(config: SegVolConfig, names: list[str], seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = SegVol(config).state_dict()
    return {name: state[name] for name in names}


def _resized(path: Path, config: SegVolConfig, spatial_size: Size3 | None) -> SegVolConfig:
    if spatial_size is None or spatial_size == config.spatial_size:
        return config
    if any(size < patch or size % patch for size, patch in zip(spatial_size, config.patch_size, strict=True)):
        wanted, patch = ("×".join(map(str, size)) for size in (spatial_size, config.patch_size))
        raise UserError(f"{path}: --spatial-size {wanted} is no multiple of its patch {patch}; choose one that is")
    return config.model_copy(update={"spatial_size": spatial_size})


def _card(
    source: Source, config: SegVolConfig, target: SegVolConfig, name: str, licence: str | None, seed: int
) -> dict[str, object]:
    card: dict[str, object] = {
        "name": name,
        "model": "SegVol (Du et al., arXiv:2311.13385)",
        "trained_on": "CT, by the publisher" + ("; the encoder alone, by masked images" if source.new else ""),
        "sizes": target.model_dump(mode="json"),
        "preprocessing": PREPROCESSING,
        **origin(source, licence),
    }
    if source.new:
        card["new"] = {"parts": parts_of(source.new), "tensors": len(source.new), "seed": seed}
    if target != config:
        card["resampled_from"] = list(config.spatial_size)
    return card


def parts_of(names: list[str]) -> list[str]:
    """The modules that names belong to, in order."""
    return list(dict.fromkeys(name.split(".")[0] for name in names))
