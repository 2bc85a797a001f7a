"""A SegVol's sizes, read off its weights; what weights cannot tell is the release's, or must be given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from adaptmedseg.checkpoints.positions import MAP_NORM, POSITIONS
from adaptmedseg.errors import UserError
from adaptmedseg.models.segvol import RELEASED, ClipConfig, SegVol, SegVolConfig, Size3

PATCH_LINEAR = "image_encoder.patch_embedding.patch_embeddings.1.weight"
TOWER = "text_encoder.clip_text_model.text_model."
BLOCKS, TEXT_LAYERS = "image_encoder.blocks.", TOWER + "encoder.layers."
TEXT = "text."
Config = TypeVar("Config")
RELEASED_GRID = cast(Size3, tuple(s // p for s, p in zip(RELEASED.spatial_size, RELEASED.patch_size, strict=True)))


@dataclass(frozen=True)
class Sizes:
    """`values`: fields of SegVolConfig ("text.width" for the text tower's); `unseen`: those still to be given."""

    path: Path
    values: dict[str, object]
    unseen: dict[str, str]

    def config(self) -> SegVolConfig:
        """UserError where a size is neither to be seen in the weights nor given, or where the sizes make no model."""
        if self.unseen:
            wanted = " ".join(f"--config {name}={example}" for name, example in self.unseen.items())
            raise UserError(
                f"{self.path}: weights of these sizes don't tell {', '.join(self.unseen)}; give them: {wanted}"
            )
        return _config(self.path, self.values)

    def stand_in(self) -> SegVolConfig:
        """A configuration with all shapes of the weights, whatever is unseen: to check names and shapes alone."""
        values = dict(self.values)
        features, tokens = cast(int, values["_features"]), cast(int, values["_tokens"])
        values.setdefault("patch_size", (1, 1, features))
        grid = values.setdefault("_grid", (1, 1, tokens))
        values["spatial_size"] = _times(cast(Size3, grid), cast(Size3, values["patch_size"]))
        for name in self.unseen:
            if name.endswith("num_heads"):
                values[name] = 1
        return _config(self.path, values)


def deduce_sizes(
    path: Path, tensors: Mapping[str, Tensor], given: Mapping[str, object], *, encoder_only: bool
) -> Sizes:
    """The sizes behind weights under this project's names, which are complete.

    The input size is the patch grid times the patch size. The patch grid shows in the shape of the decoder's norm over
    its map, twice the grid; with an encoder alone it is the release's where the number of tokens is. Patch size and
    numbers of heads leave no trace: they are the release's where the widths are, and must be `given` elsewhere. An
    encoder's missing rest is the release's unless given. Raises UserError where `given` contradicts the weights.
    """
    seen = _seen(path, tensors, encoder_only)
    wanted = {key: _as_sizes(value) for key, value in given.items()}
    for key, value in wanted.items():
        if key in seen and key != "spatial_size" and seen[key] != value:
            raise UserError(f"{path}: {key} is {seen[key]} in its weights, not {value}; leave --config {key} out")
    values = {**_released(encoder_only, wanted.get("text.kind", "clip")), **seen, **wanted}
    unseen: dict[str, str] = {}
    _patch_and_grid(path, values, unseen)
    _heads(values, wanted, unseen)
    return Sizes(path, values, unseen)


def check_shapes(
    path: Path, tensors: Mapping[str, Tensor], keys: Mapping[str, str], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """UserError for the first tensor that does not have the shape, or the kind of number, that its sizes ask for."""
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        key = keys.get(name, name)
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"{path}: its tensor {key} is {_by(tensor.shape)}, where the sizes of the others ask for {_by(shape)}; "
                "give the publisher's file"
            )
        if not tensor.is_floating_point():
            raise UserError(
                f"{path}: its tensor {key} is {tensor.dtype}, not floating point; give the publisher's file"
            )


def expected_shapes(config: SegVolConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a model; no memory is spent on them."""
    return shapes_of(SegVol, config)


def shapes_of(build: Callable[[Config], nn.Module], config: Config) -> dict[str, tuple[int, ...]]:
    """As `expected_shapes`, for what `build` makes of a configuration."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(config).state_dict().items()}


def expected_names(tensors: Mapping[str, Tensor]) -> dict[str, None]:
    """Names of all tensors of a SegVol with as many layers as these tensors have, in the model's order."""
    layers = max(count_layers(tensors, BLOCKS), 1)
    text = cast(ClipConfig, RELEASED.text).model_copy(update={"num_layers": max(count_layers(tensors, TEXT_LAYERS), 1)})
    return dict.fromkeys(expected_shapes(RELEASED.model_copy(update={"num_layers": layers, "text": text})))


def patch_grid(config: SegVolConfig) -> Size3:
    """Patches along (d, h, w)."""
    return cast(Size3, tuple(s // p for s, p in zip(config.spatial_size, config.patch_size, strict=True)))


def _seen(path: Path, tensors: Mapping[str, Tensor], encoder_only: bool) -> dict[str, object]:
    width, features = _shape(path, tensors, PATCH_LINEAR, 2)
    values: dict[str, object] = {
        "embed_dim": width,
        "mlp_dim": _shape(path, tensors, "image_encoder.blocks.0.mlp.linear1.weight", 2)[0],
        "num_layers": count_layers(tensors, BLOCKS),
        "_features": features,
        "_tokens": _shape(path, tensors, POSITIONS, 3)[1],
    }
    if encoder_only:
        return values
    decoder = "mask_decoder."
    _, d, h, w = _shape(path, tensors, MAP_NORM[0], 4)
    return values | {
        "_grid": (d // 2, h // 2, w // 2),
        "decoder_mlp_dim": _shape(path, tensors, decoder + "transformer.layers.0.mlp.lin1.weight", 2)[0],
        "iou_hidden_dim": _shape(path, tensors, decoder + "iou_prediction_head.layers.0.weight", 2)[0],
        "text.width": _shape(path, tensors, TOWER + "embeddings.token_embedding.weight", 2)[1],
        "text.mlp_dim": _shape(path, tensors, TOWER + "encoder.layers.0.mlp.fc1.weight", 2)[0],
        "text.num_layers": count_layers(tensors, TEXT_LAYERS),
    }


def _released(encoder_only: bool, text_kind: object) -> dict[str, object]:
    """The release's conventions, and for an encoder alone its sizes of the rest. A decoder that is yet to be trained
    has seen no windows at full resolution."""
    names = ("prompt_frame", "upscale_norm", "resize")
    values: dict[str, object] = {name: getattr(RELEASED, name) for name in names}
    values["zoom_in"] = not encoder_only
    if encoder_only:
        values |= {"decoder_mlp_dim": RELEASED.decoder_mlp_dim, "iou_hidden_dim": RELEASED.iou_hidden_dim}
        if text_kind == "clip":
            text = cast(ClipConfig, RELEASED.text)
            values |= {f"text.{name}": getattr(text, name) for name in ("width", "mlp_dim", "num_layers")}
    return values


def _comma(size: Size3) -> str:
    """As options have it: 32,256,256."""
    return ",".join(map(str, size))


def _patch_and_grid(path: Path, values: dict[str, object], unseen: dict[str, str]) -> None:
    """Patch size, patch grid and input size: filled in, or named as unseen."""
    for name in ("patch_size", "spatial_size"):
        three = values.get(name, (1, 1, 1))
        if not (isinstance(three, tuple) and len(three) == 3 and all(type(n) is int and n > 0 for n in three)):
            raise UserError(f"{path}: {name} is {three!r}; give three whole numbers, --config {name}=D,H,W")
    features, tokens = cast(int, values["_features"]), cast(int, values["_tokens"])
    if features == prod(RELEASED.patch_size):
        values.setdefault("patch_size", RELEASED.patch_size)
    patch = cast(Size3 | None, values.get("patch_size"))
    if patch is None:
        unseen["patch_size"] = "D,H,W"
        return
    if len(patch) != 3 or prod(patch) != features:
        raise UserError(f"{path}: its patches hold {features} voxels, which {patch} are not; give another patch_size")
    size = cast(Size3 | None, values.get("spatial_size"))
    if size is not None and len(size) == 3 and all(s % p == 0 for s, p in zip(size, patch, strict=True)):
        given = tuple(s // p for s, p in zip(size, patch, strict=True))
        if values.setdefault("_grid", given) != given:
            expected = _times(cast(Size3, values["_grid"]), patch)
            raise UserError(
                f"{path}: its weights are for {_comma(expected)}, not --config spatial_size={_comma(size)}; "
                f"leave that out, and give --spatial-size {_comma(size)} to have them resampled"
            )
    if tokens == prod(RELEASED_GRID):
        values.setdefault("_grid", RELEASED_GRID)
    grid = cast(Size3 | None, values.get("_grid"))
    if grid is None:
        unseen["spatial_size"] = "D,H,W"
        return
    if prod(grid) != tokens:
        raise UserError(f"{path}: has {tokens} position embeddings, where a patch grid of {grid} needs {prod(grid)}")
    values["spatial_size"] = _times(grid, patch)


def _heads(values: dict[str, object], given: Mapping[str, object], unseen: dict[str, str]) -> None:
    """The release's numbers of heads where the widths are the release's; else they must be given."""
    released = cast(ClipConfig, RELEASED.text)
    as_released = values["embed_dim"] == RELEASED.embed_dim
    table = [("num_heads", RELEASED.num_heads, as_released)]
    table += [("decoder_num_heads", RELEASED.decoder_num_heads, as_released)]
    if "text.width" in values and values.get("text.kind", "clip") == "clip":
        table += [("text.num_heads", released.num_heads, values["text.width"] == released.width)]
    for name, number, known in table:
        if name in given:
            continue
        if known:
            values[name] = number
        else:
            unseen[name] = "N"


def _config(path: Path, values: Mapping[str, object]) -> SegVolConfig:
    fields = {key: value for key, value in values.items() if not key.startswith(("_", TEXT))}
    text = {key.removeprefix(TEXT): value for key, value in values.items() if key.startswith(TEXT)}
    try:
        config = SegVolConfig.model_validate({**fields, "text": {"kind": "clip", **text}})
        with torch.device("meta"):
            SegVol(config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "clip")
        raise UserError(f"{path}: {where}: {first['msg'].lower()}; correct --config {where}") from None
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: its sizes make no model ({error}); correct --config") from None
    widths = [("num_heads", config.num_heads, config.embed_dim)]
    if isinstance(config.text, ClipConfig):
        widths.append(("text.num_heads", config.text.num_heads, config.text.width))
    for name, heads, width in widths:
        if heads < 1 or width % heads:
            raise UserError(f"{path}: {name}: {heads} heads do not divide the width {width}; correct --config {name}")
    return config


def _shape(path: Path, tensors: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    shape = tuple(tensors[name].shape)
    if len(shape) != ndim:
        raise UserError(f"{path}: its tensor {name} is {_by(shape)}, not of {ndim} axes; give the publisher's file")
    return shape


def count_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Layers numbered after a prefix."""
    parts = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    numbers = {int(part) for part in parts if part.isdecimal()}
    return min(max(numbers, default=-1), len(numbers)) + 1  # a stray number makes no thousand layers


def _as_sizes(value: object) -> object:
    """[4, 16, 16] and "4,16,16" are both a size."""
    if isinstance(value, str) and "," in value:
        parts = value.split(",")
        if all(part.strip().isdecimal() for part in parts):
            return tuple(int(part) for part in parts)
    return tuple(value) if isinstance(value, list) else value


def _times(a: Size3, b: Size3) -> Size3:
    return cast(Size3, tuple(x * y for x, y in zip(a, b, strict=True)))


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"
