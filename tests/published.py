"""SegVol checkpoints as others publish them, of the tiny reference model: every layout as a file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from golden_fill import draw, spread
from safetensors.torch import save_file
from small_cases import Outcome
from test_golden_segvol import TINY, model_of
from torch import Tensor

from adaptmedseg.checkpoints.convert import Source, read_source
from adaptmedseg.models.segvol import SegVol

Table = dict[str, Tensor]
HEADS: dict[str, object] = {"num_heads": 6, "decoder_num_heads": 8, "text.num_heads": 2}
HEAD_OPTIONS = [part for name, value in HEADS.items() for part in ("--config", f"{name}={value}")]
TOWER = "text_encoder.clip_text_model.text_model."


@cache
def tiny_model() -> SegVol:
    """The tiny reference model, filled by rule."""
    return model_of(TINY, "dev-tiny/")


@cache
def tiny_table() -> Table:
    """Its tensors, with those that checkpoints have on top and that are left out by rule."""
    tensors = dict(tiny_model().state_dict())
    for layer, shape in (("0", (4, 1, 2, 2)), ("1", (4,)), ("3", (16, 4, 2, 2)), ("4", (16,)), ("6", (96, 16, 1, 1))):
        for kind in ("weight", "bias"):
            name = f"prompt_encoder.mask_downscaling.{layer}.{kind}"
            size = shape if kind == "weight" else shape[:1]
            tensors[name] = draw(name, size, *spread(name, size))
    tensors[TOWER + "embeddings.position_ids"] = torch.arange(77)[None]
    for block in range(2):
        for kind in ("weight", "bias"):
            tensors[f"image_encoder.blocks.{block}.norm_cross_attn.{kind}"] = torch.ones(96)
    return tensors


def prefixed(table: Table, prefix: str) -> Table:
    return {prefix + name: tensor for name, tensor in table.items()}


def project_release(table: Table, path: Path) -> Path:
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    content = {
        "model": prefixed(table, "module."),
        "epoch": 269,
        "optimizer": optimizer,
        "scheduler": {"last_epoch": 2},
    }
    torch.save(content, path)
    return path


def project_release_of_old_pytorch(table: Table, path: Path) -> Path:
    torch.save({"model": prefixed(table, "module.")}, path, _use_new_zipfile_serialization=False)
    return path


def hub_release(table: Table, path: Path) -> Path:
    torch.save(prefixed(table, "model."), path)
    return path


def safetensors_with_prefix(table: Table, path: Path) -> Path:
    save_file(prefixed(table, "model."), path)
    return path


def safetensors_flat(table: Table, path: Path) -> Path:
    save_file(table, path)
    return path


def encoder_table(table: Table) -> Table:
    """As masked-image pre-training leaves it: the encoder, and its head beside it."""
    encoder = {name.removeprefix("image_encoder."): t for name, t in table.items() if name.startswith("image_encoder.")}
    head = {"model.mask_token": torch.zeros(96), "model.to_pixels.weight": torch.zeros(1024, 96)}
    second_name = {"model.patch_to_emb.bias": encoder["patch_embedding.patch_embeddings.1.bias"]}
    return prefixed(encoder, "model.encoder.") | head | second_name


def encoder_only(table: Table, path: Path) -> Path:
    torch.save({"state_dict": encoder_table(table)}, path)
    return path


WHOLE = [
    (project_release, "project release"),
    (project_release_of_old_pytorch, "project release"),
    (hub_release, "hub release"),
    (safetensors_with_prefix, "hub release"),
    (safetensors_flat, "flat"),
]


def read(path: Path, given: dict[str, object] | None = None) -> Source:
    return read_source(path, HEADS if given is None else given)


def image() -> Tensor:
    values = np.random.default_rng(11).random((1, 1, *TINY["spatial_size"])).astype(np.float32)
    return torch.from_numpy(values)


def assert_sentence(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    for part in parts:
        assert part in outcome.err
