"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

from adaptmedseg.models.segvol import HashedTextConfig, SegVol, SegVolConfig

hypothesis.settings.register_profile("project", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("project")

SHARED = Path(__file__).resolve().parents[2] / "shared"
TINY = SegVolConfig(
    spatial_size=(8, 32, 32),
    patch_size=(4, 8, 8),
    embed_dim=32,
    mlp_dim=64,
    num_layers=2,
    num_heads=2,
    decoder_mlp_dim=32,
    decoder_num_heads=2,
    iou_hidden_dim=16,
    prompt_frame="normalised",
    upscale_norm="channel",
    resize="smooth",
    text=HashedTextConfig(width=16),
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests are small: more threads only fight each other."""
    torch.set_num_threads(1)


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; name one with {variable}")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes; the test is skipped where there is none."""
    return _folder("ADAPTMEDSEG_DATA", SHARED / "data")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of reference numbers; the test is skipped where there is none."""
    return _folder("ADAPTMEDSEG_GOLDEN", SHARED / "golden")


@pytest.fixture
def tiny_config() -> SegVolConfig:
    """The smallest SegVol with all of the small model's conventions; its map is (8, 16, 16)."""
    return TINY


@pytest.fixture
def tiny_base(tiny_config: SegVolConfig) -> SegVol:
    """A tiny SegVol with fresh weights, the same in every test."""
    torch.manual_seed(0)
    return SegVol(tiny_config).eval()
