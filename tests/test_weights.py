"""Published checkpoints: every layout to the reference's numbers; keys, sizes and shapes that are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import ViT
from published import (
    HEADS,
    TOWER,
    WHOLE,
    Table,
    encoder_only,
    encoder_table,
    hub_release,
    image,
    prefixed,
    read,
    tiny_model,
    tiny_table,
)
from safetensors.torch import load_file
from test_golden_segvol import BOX, KINDS, LABELS, LOGITS, POINTS, TINY, VOXELS, prompts_of

from adaptmedseg.checkpoints.convert import convert
from adaptmedseg.checkpoints.positions import MAP_NORM, POSITIONS
from adaptmedseg.checkpoints.store import load_base, weights_hash
from adaptmedseg.checkpoints.translate import LAYOUTS, find_layout, translate
from adaptmedseg.errors import UserError
from adaptmedseg.models.segvol import RELEASED, HashedTextConfig, SegVol, upsample_logits


@pytest.fixture(scope="module")
def table() -> Table:
    return tiny_table()


@pytest.fixture(scope="module")
def model() -> SegVol:
    return tiny_model()


# To the reference's numbers -------------------------------------------------------------


@pytest.mark.parametrize(("write", "layout"), WHOLE, ids=lambda value: getattr(value, "__name__", ""))
def test_every_layout_gives_the_references_numbers(
    table: Table, model: SegVol, tmp_path: Path, write: Callable[[Table, Path], Path], layout: str
) -> None:
    source = read(write(table, tmp_path / "weights.any"))
    assert source.layout == layout
    assert {rule: len(keys) for rule, keys in source.left_out_by_rule().items()} == {
        "mask_downscaling": 10,
        "position_ids": 1,
        "norm_cross_attn": 4,
    }
    assert not source.new
    card = convert(source, tmp_path / "base.safetensors", name="tiny")
    base, stored = load_base(str(tmp_path / "base.safetensors"))
    assert stored == {key: value for key, value in card.items() if key != "weights_sha256"}
    assert base.config == model.config.model_copy(update={"zoom_in": True})
    assert card["weights_sha256"] == weights_hash(model) == weights_hash(base)
    prompts = [torch.tensor([values]) for values in (POINTS, LABELS, BOX)]
    with torch.inference_mode():
        embedding = base.eval().encode_image(image())
        for kind in KINDS:
            logits = base.segment(embedding, prompts_of(kind, "liver", *prompts))
            logits = upsample_logits(logits, TINY["spatial_size"])[0]
            np.testing.assert_allclose([float(logits[voxel]) for voxel in VOXELS], LOGITS[kind], atol=1e-4)


def test_an_encoder_alone_leaves_the_rest_new(table: Table, model: SegVol, tmp_path: Path) -> None:
    path = encoder_only(table, tmp_path / "vit_pretrain.ckpt")
    with pytest.raises(UserError, match=r"don't tell spatial_size, num_heads, decoder_num_heads; give"):
        convert(read(path, {}), tmp_path / "x.safetensors", name="x")
    given = {"num_heads": 6, "decoder_num_heads": 8, "text.kind": "hashed", "spatial_size": "16,64,64"}
    source = read(path, given)
    assert set(source.left_out_by_rule()) == {"norm_cross_attn", "pre-training head"}
    assert source.new
    assert not any(name.startswith("image_encoder.") for name in source.new)
    first, again, other = (
        convert(source, tmp_path / f"{i}.safetensors", name="encoder", seed=seed) for i, seed in enumerate((0, 0, 1))
    )
    assert first["weights_sha256"] == again["weights_sha256"] != other["weights_sha256"]
    assert first["new"] == {
        "parts": ["prompt_encoder", "mask_decoder", "text_encoder"],
        "tensors": len(source.new),
        "seed": 0,
    }
    base, _ = load_base(str(tmp_path / "0.safetensors"))
    assert base.config.text == HashedTextConfig()
    assert not base.config.zoom_in
    with torch.inference_mode():
        torch.testing.assert_close(base.eval().encode_image(image()), model.encode_image(image()))


def test_the_encoders_keys_are_those_of_monai(tmp_path: Path) -> None:
    vit = ViT(
        1, (16, 64, 64), (4, 16, 16), hidden_size=96, mlp_dim=192, num_layers=2, num_heads=6, proj_type="perceptron"
    )
    path = tmp_path / "vit.ckpt"
    torch.save({"state_dict": prefixed(vit.state_dict(), "model.encoder.")}, path)
    given = {"num_heads": 6, "decoder_num_heads": 8, "text.kind": "hashed", "spatial_size": (16, 64, 64)}
    convert(read(path, given), tmp_path / "base.safetensors", name="monai")
    base, _ = load_base(str(tmp_path / "base.safetensors"))
    with torch.inference_mode():
        tokens = base.eval().encode_image(image()).flatten(2).mT
        torch.testing.assert_close(tokens, vit.eval()(image())[0], atol=1e-5, rtol=1e-5)


def test_half_precision_becomes_float32(table: Table, tmp_path: Path) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in table.items()}
    path = hub_release(half, tmp_path / "half.bin")
    convert(read(path), tmp_path / "base.safetensors", name="half")
    assert {tensor.dtype for tensor in load_file(tmp_path / "base.safetensors").values()} == {torch.float32}


def test_the_translation_is_a_pure_table() -> None:
    for layout in LAYOUTS:
        key = layout.prefix + layout.sign + "some.weight"
        assert find_layout({key: 0}) is layout
        found = translate({key: 1, "odd": 2}, layout)
        assert list(found.loaded.values()) == [1]
        assert next(iter(found.loaded)).startswith("image_encoder.")
        assert found.strange == ["odd"]
    assert find_layout({"conv1.weight": 0}) is None


@pytest.mark.golden
@pytest.mark.parametrize("name", ["segvol-tiny", "segvol-base"])
def test_sizes_of_the_references_checkpoints(golden_dir: Path, tmp_path: Path, name: str) -> None:
    spec = json.loads((golden_dir / f"{name}.json").read_text(encoding="utf-8"))
    path = tmp_path / "weights.pth"
    zero = torch.zeros(1)
    tensors = {
        "module." + key: zero.expand(entry["shape"]) for key, entry in spec["state_dict"].items() if "mean" in entry
    }
    torch.save({"model": tensors}, path)
    released = name == "segvol-base"
    config = read(path, {} if released else None).sizes.config()
    assert (config == RELEASED) is released
    for field in ("spatial_size", "patch_size", "embed_dim", "mlp_dim", "num_layers", "num_heads", "decoder_mlp_dim"):
        expected = spec["config"][field]
        assert getattr(config, field) == (tuple(expected) if isinstance(expected, list) else expected)


# Every other key is an error ------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("key", ["image_encoder.norm.bias", TOWER + "final_layer_norm.weight", POSITIONS, MAP_NORM[0]])
def test_a_missing_key_is_named(table: Table, tmp_path: Path, prefix: str, key: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(prefixed({name: tensor for name, tensor in table.items() if name != key}, prefix), path)
    with pytest.raises(UserError, match="lacks the key") as error:
        read(path)
    assert str(path) in str(error.value)
    assert key in str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "model.image_encoder.blocks.0.norm3.weight",
        "model.image_encoder.blocks.0.norm_cross_attn.scale",
        "model.mask_decoder.extra",
        "model.lora.weight",
        "stray",
        "module.image_encoder.norm.weight",
    ],
)
def test_an_unknown_key_is_named(table: Table, tmp_path: Path, key: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save({**prefixed(table, "model."), key: torch.zeros(1)}, path)
    with pytest.raises(UserError, match="unknown to every rule") as error:
        read(path)
    assert str(path) in str(error.value)
    assert key in str(error.value)


def test_an_encoders_stray_key_is_named(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "vit_pretrain.ckpt"
    torch.save({"state_dict": {**encoder_table(table), "model.decoder.weight": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"model\.decoder\.weight"):
        read(path)
    cut = encoder_table(table)
    del cut["model.encoder.norm.weight"]
    torch.save({"state_dict": cut}, path)
    with pytest.raises(UserError, match=r"lacks the key model\.encoder\.norm\.weight"):
        read(path)


# Sizes ----------------------------------------------------------------------------------


def test_sizes_that_weights_cannot_tell_are_asked_for(table: Table, tmp_path: Path) -> None:
    path = hub_release(table, tmp_path / "pytorch_model.bin")
    source = read(path, {})
    assert set(source.sizes.unseen) == set(HEADS)
    with pytest.raises(
        UserError, match=r"--config num_heads=N --config decoder_num_heads=N --config text\.num_heads=N"
    ):
        source.sizes.config()
    assert read(path).sizes.config().spatial_size == (16, 64, 64)
    assert read(path, {**HEADS, "patch_size": [16, 8, 8]}).sizes.config().spatial_size == (64, 32, 32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embed_dim": 768}, "embed_dim is 96 in its weights, not 768"),
        ({"num_heads": 7}, "7 heads do not divide the width 96"),
        ({"decoder_num_heads": 7}, "7 heads do not divide the attention width"),
        ({"num_heads": "many"}, "num_heads: input should be a valid integer"),
        ({"numheads": 6}, "numheads: extra inputs"),
        ({"patch_size": "4,16"}, "give three whole numbers"),
        ({"patch_size": 16}, "give three whole numbers"),
        ({"patch_size": "4,16,8"}, "patches hold 1024 voxels"),
        (
            {"spatial_size": "16,64,128"},
            r"its weights are for 16,64,64, not --config spatial_size=16,64,128; .* --spatial-size 16,64,128",
        ),
        ({"upscale_norm": "channel"}, "output_upscaling"),
        ({"text.kind": "hashed"}, "text"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    table: Table, tmp_path: Path, given: dict[str, object], message: str
) -> None:
    path = hub_release(table, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=message) as error:
        read(path, {**HEADS, **given}).sizes.config()
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("image_encoder.blocks.1.attn.qkv.weight", (280, 96)),
        ("image_encoder.patch_embedding.position_embeddings", (1, 63, 96)),
        ("image_encoder.patch_embedding.position_embeddings", (63, 96)),
        ("mask_decoder.output_upscaling.1.bias", (24, 8, 8, 6)),
        (TOWER + "embeddings.token_embedding.weight", (4000, 64)),
        ("prompt_encoder.point_embeddings.0.weight", ()),
    ],
)
def test_a_wrong_shape_is_named(table: Table, tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = hub_release({**table, name: torch.zeros(shape)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_integers_and_values_that_are_not_finite_are_refused(table: Table, tmp_path: Path) -> None:
    name = "image_encoder.norm.weight"
    path = hub_release({**table, name: torch.ones(96, dtype=torch.long)}, tmp_path / "a.bin")
    with pytest.raises(UserError, match=r"model\.image_encoder\.norm\.weight is torch\.int64"):
        read(path)
    path = hub_release({**table, name: torch.full((96,), torch.nan)}, tmp_path / "b.bin")
    with pytest.raises(UserError, match=r"model\.image_encoder\.norm\.weight holds values"):
        convert(read(path), tmp_path / "base.safetensors", name="x")
    assert not (tmp_path / "base.safetensors").exists()
