"""SAM's published checkpoints: recognised, converted, checked; and every file that is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sam_cases import TINY_SAM, reference_sam
from small_cases import call
from torch import Tensor

from adaptmedseg.checkpoints.sam import SAM_FORMAT, load_sam, sam_source, save_sam
from adaptmedseg.checkpoints.store import load_base, read_tensors, write_tensors
from adaptmedseg.errors import UserError
from adaptmedseg.models.sam import SAM_B, Sam, SamConfig

HEADS = ["--config", "decoder_num_heads=4"]
Table = dict[str, Tensor]


@pytest.fixture(scope="module")
def table() -> Table:
    return dict(reference_sam(TINY_SAM).state_dict())


def write_pth(path: Path, table: Table) -> Path:
    torch.save(table, path)
    return path


@pytest.mark.parametrize("layout", ["release", "training state", "module prefix", "safetensors"])
def test_a_release_becomes_a_model_file(table: Table, tmp_path: Path, layout: str) -> None:
    path = tmp_path / ("sam.safetensors" if layout == "safetensors" else "sam.pth")
    if layout == "safetensors":
        save_file(table, path)
    else:
        content = {"module." + key: value for key, value in table.items()} if "prefix" in layout else table
        torch.save({"model": content, "epoch": 3} if "state" in layout else content, path)
    out = tmp_path / "out.safetensors"
    outcome = call("weights", "convert", path, "--out", out, *HEADS)
    assert outcome.code == 0, outcome.err
    assert f"loaded: {len(table)} tensors" in outcome.out
    model, card = load_sam(str(out))
    assert model.config == TINY_SAM
    assert card["model"] == "SAM (Kirillov et al., arXiv:2304.02643)"
    loaded = model.state_dict()
    assert torch.equal(loaded["image_encoder.blocks.1.mlp.fc2.bias"], table["image_encoder.blocks.1.mlp.lin2.bias"])
    name = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert torch.equal(loaded[name], table[name].flip(0))
    verified = call("weights", "verify", out, "--against", path)
    assert verified.code == 0, verified.out
    assert f"{len(table)} of {len(table)} tensors of {path.name} are equal to the bit" in verified.out


def test_medsam_is_known_by_its_name_unless_told_otherwise(table: Table, tmp_path: Path) -> None:
    path = write_pth(tmp_path / "medsam_vit_b.pth", table)
    given: dict[str, object] = {"decoder_num_heads": 4}
    config = sam_source(path, table, given).config
    assert (config.fit, config.pixels, config.alternatives) == ("stretch", "min-max", False)
    told = sam_source(path, table, given | {"fit": "pad", "pixels": "standardised", "alternatives": True}).config
    assert told == TINY_SAM
    inspected = call("weights", "inspect", path, *HEADS)
    assert inspected.code == 0, inspected.err
    assert "pixels: min-max" in inspected.out


def test_released_sizes_are_read_off_the_weights() -> None:
    with torch.device("meta"):
        tensors = Sam(SAM_B).state_dict()
    names = {key.replace(".mlp.fc", ".mlp.lin") if "encoder.blocks" in key else key: value
             for key, value in tensors.items()}  # fmt: skip
    assert sam_source(Path("sam_vit_b_01ec64.pth"), names, {}).config == SAM_B


def without(name: str) -> Callable[[Table], Table]:
    return lambda table: {key: value for key, value in table.items() if key != name}


def changed(name: str, value: Tensor) -> Callable[[Table], Table]:
    return lambda table: table | {name: value}


WRONG: dict[str, tuple[Callable[[Table], Table], list[str], str]] = {
    "missing": (without("mask_decoder.iou_token.weight"), HEADS, "lacks the key mask_decoder.iou_token.weight"),
    "strange": (changed("mask_decoder.hq.weight", torch.zeros(2)), HEADS, "unknown to every rule, the key mask_decod"),
    "shape": (changed("mask_decoder.mask_tokens.weight", torch.zeros(3, 32)), HEADS, "mask_tokens.weight is 3×32"),
    "axes": (changed("image_encoder.pos_embed", torch.zeros(64, 48)), HEADS, "pos_embed has 2 axes"),
    "heads": (lambda table: table, [], "don't tell decoder_num_heads"),
    "wrong heads": (lambda table: table, ["--config", "decoder_num_heads=5"], "5 heads do not divide"),
    "wrong size": (lambda table: table, [*HEADS, "--config", "image_size=128"], "image_size is 64 in its weights"),
    "convention": (lambda table: table, [*HEADS, "--config", "fit=crop"], "fit: input should be 'pad' or 'stretch'"),
    "spatial size": (lambda table: table, [*HEADS, "--spatial-size", "32,64,64"], "is for SegVol, and"),
    "not finite": (changed("image_encoder.neck.1.bias", torch.full((32,), torch.nan)), HEADS, "not finite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_and_sizes_are_told_in_a_sentence(table: Table, tmp_path: Path, case: str) -> None:
    change, options, message = WRONG[case]
    path = write_pth(tmp_path / "sam.pth", change(table))
    outcome = call("weights", "convert", path, "--out", tmp_path / "out.safetensors", *options)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "sam.safetensors"
    save_sam(path, Sam(TINY_SAM), {"name": "mine"})
    assert call("weights", "verify", path).code == 0
    tensors, metadata = read_tensors(path, SAM_FORMAT)
    tensors["mask_decoder.iou_token.weight"] += 1
    write_tensors(path, tensors, metadata)
    assert call("weights", "verify", path).code == 1
    with pytest.raises(UserError, match="weights are not those that were written"):
        load_sam(str(path))


def test_a_2d_model_is_no_base_of_volumes(tmp_path: Path) -> None:
    path = tmp_path / "sam.safetensors"
    save_sam(path, Sam(TINY_SAM), {"name": "mine"})
    with pytest.raises(UserError, match=r"holds adaptmedseg-sam-1 \(a SAM, for pictures\)"):
        load_base(str(path))
    with pytest.raises(UserError, match="neither a known name"):
        load_sam("sma")
    assert SamConfig() == SAM_B
