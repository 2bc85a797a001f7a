"""Weights that belong to places, at another input size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published import HEAD_OPTIONS, Table, assert_sentence, hub_release, tiny_table
from small_cases import call
from test_golden_segvol import BOX, LABELS, POINTS, prompts_of
from torch import Tensor

from adaptmedseg.checkpoints.positions import MAP_NORM, POSITIONS, resample_map, resample_positions
from adaptmedseg.checkpoints.store import load_base


@pytest.fixture(scope="module")
def table() -> Table:
    return tiny_table()


def smooth(grid: tuple[int, int, int]) -> Tensor:
    """Two smooth fields over the unit cube at the centres of a grid's cells, (2, d, h, w)."""
    d, h, w = torch.meshgrid(*[(torch.arange(n) + 0.5) / n for n in grid], indexing="ij")
    return torch.stack([torch.sin(3 * d) + torch.cos(2 * h) * w, d * h - torch.sin(2 * w)])


def tokens(field: Tensor) -> Tensor:
    return field.flatten(1).mT[None]


def test_the_same_grid_keeps_positions_to_the_bit() -> None:
    positions = tokens(smooth((3, 4, 5)))
    assert torch.equal(resample_positions(positions, (3, 4, 5), (3, 4, 5)), positions)
    assert resample_map(smooth((3, 4, 5)), (3, 4, 5)) is not None
    with pytest.raises(ValueError, match="60 positions"):
        resample_positions(positions, (3, 4, 4), (3, 4, 4))


@pytest.mark.parametrize("new", [(8, 12, 12), (8, 24, 24), (16, 16, 16), (5, 9, 31)])
def test_positions_of_a_smooth_field_are_met_within_the_bound(new: tuple[int, int, int]) -> None:
    old = (8, 16, 16)
    found = resample_positions(tokens(smooth(old)), old, new)[0].mT.reshape(2, *new)
    error = (found - smooth(new)).abs()
    # Inside, h²/8 · max|f''| an axis; at the border, where the field is held constant, h/2 · max|f'| on top.
    inside = sum(curvature / (8 * n**2) for curvature, n in zip((9, 4, 4), old, strict=True))
    border = sum(slope / (2 * n) for slope, n in zip((3, 2, 2), old, strict=True))
    assert float(error.max()) <= inside + border
    d, h, w = (((i := (torch.arange(n) + 0.5) / n * o) >= 0.5) & (i <= o - 0.5) for n, o in zip(new, old, strict=True))
    assert float(error[:, d][:, :, h][:, :, :, w].max()) <= inside


def test_up_and_down_comes_back() -> None:
    old = (4, 8, 8)
    start = tokens(smooth(old))
    there = resample_positions(start, old, (12, 24, 24))  # three times: the old centres are among the new ones
    back = resample_positions(there, (12, 24, 24), old)
    torch.testing.assert_close(back, start, atol=1e-5, rtol=0)


def test_a_base_of_another_input_size(table: Table, tmp_path: Path) -> None:
    path, out = hub_release(table, tmp_path / "pytorch_model.bin"), tmp_path / "base.safetensors"
    outcome = call("weights", "convert", path, "--out", out, *HEAD_OPTIONS, "--spatial-size", "16,32,96")
    assert outcome.code == 0, outcome
    assert "resampled: from 16×64×64 to 16,32,96" in outcome.out
    base, card = load_base(str(out))
    assert card["resampled_from"] == [16, 64, 64]
    assert base.config.spatial_size == (16, 32, 96)
    state = base.state_dict()
    assert state[POSITIONS].shape == (1, 4 * 2 * 6, 96)
    assert state[MAP_NORM[0]].shape == (24, 8, 4, 12)
    prompts = [torch.tensor([values]) for values in (POINTS, LABELS, BOX)]
    with torch.inference_mode():
        logits = base.eval()(torch.rand(1, 1, 16, 32, 96), prompts_of("text_box", "liver", *prompts))
    assert torch.isfinite(logits).all()
    outcome = call("weights", "verify", out, "--against", path)
    assert outcome.code == 0, outcome
    for wrong in ("16,40,64", "16,64", "0,64,64", "a,b,c"):
        new = tmp_path / "new.safetensors"
        assert_sentence(
            call("weights", "convert", path, "--out", new, *HEAD_OPTIONS, "--spatial-size", wrong), "--spatial-size"
        )
        assert not new.exists()
