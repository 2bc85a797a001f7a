"""The benchmark measures what it says: ways that agree, views that are counted, and a report that holds the figures."""

from __future__ import annotations

import mmap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_cases import call, save, small_image

from adaptmedseg.bench import inference as bench
from adaptmedseg.bench.agreement import compare_ways, ways_of
from adaptmedseg.bench.products import encoder_share
from adaptmedseg.checkpoints.store import save_base
from adaptmedseg.cli.bench import parse_shape, report, way_agreement
from adaptmedseg.data.volume import read_image
from adaptmedseg.errors import UserError
from adaptmedseg.inference.machine import PROC, AnonymousPeak, anonymous_rss
from adaptmedseg.inference.precision import hold_products_in_bf16, holds_bf16
from adaptmedseg.models.segvol import SegVol, SegVolConfig

SETTINGS = bench.BenchSettings("tiny", (12, 40, 48), 3, "cpu")


@pytest.fixture(autouse=True)
def _tiny_size(tiny_config: SegVolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.SIZES, "tiny", tiny_config)


def test_prompts_in_one_batch_and_one_by_one() -> None:
    outcome = call(
        "bench", "slices", "--size", "small", "--prompts", "3", "--repeats", "1", "--float32", "--device", "cpu"
    )
    assert outcome.code == 0, outcome.err
    assert "3 prompts, SAM small, float32, cpu" in outcome.out
    assert float(outcome.out.rsplit(" ", 1)[1]) < 1e-3
    assert "choose one of small, b, l, h" in call("bench", "slices", "--size", "x").err


def test_sharing_changes_the_cost_and_not_the_answer(tmp_path: Path) -> None:
    ways = {way: bench.measure(way, SETTINGS, tmp_path) for way in ("plain", "shared", "ours")}
    logits = {way: np.load(tmp_path / f"{way}.npy") for way in ways}
    np.testing.assert_allclose(logits["shared"], logits["plain"], atol=1e-4)
    assert ways["plain"].views > ways["shared"].views == ways["ours"].views
    assert ways["plain"].decodings == ways["shared"].decodings
    shares = [float((structure > 0).mean()) for structure in logits["plain"]]
    assert all(0.02 < share < 0.9 for share in shares)
    assert all(0 < (way.anonymous_bytes or 1) <= way.peak_bytes for way in ways.values())
    ours = ways["ours"]
    assert ours.share is not None
    assert ours.share.encoder > 0
    lines = report(bench.BenchResult(SETTINGS, ways, dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 1.0)))
    assert len(lines) == 7


def test_plain_attention_is_the_same_attention(tiny_base: SegVol) -> None:
    image = torch.rand(1, 1, *tiny_base.config.spatial_size)
    with torch.inference_mode():
        usual = tiny_base.encode_image(image)
        with bench.plain_attention():
            plain = tiny_base.encode_image(image)
    torch.testing.assert_close(usual, plain, atol=1e-5, rtol=1e-5)


def test_products_in_bf16_answer_as_autocast_does(tiny_config: SegVolConfig) -> None:
    torch.manual_seed(0)
    model = SegVol(tiny_config).eval()
    image = torch.rand(1, 1, *tiny_config.spatial_size)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        before = model.encode_image(image)
        hold_products_in_bf16(model)
        after = model.encode_image(image)
        assert encoder_share(model, "cpu").seconds > 0
    assert holds_bf16(model)
    torch.testing.assert_close(before, after, atol=0, rtol=0)


@pytest.mark.parametrize("text", ["96,256", "a,b,c", "0,1,2", "-1,2,3", "1,2,3,4", ""])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--shape"):
        parse_shape(text)
    assert parse_shape("96, 256,256") == (96, 256, 256)


def test_agreement_is_measured_against_the_exact_way(tiny_base: SegVol, tmp_path: Path) -> None:
    save_base(tmp_path / "base.safetensors", tiny_base, {"name": "tiny"})
    ways = ways_of(str(tmp_path / "base.safetensors"), "cpu")
    volume = read_image(save(tmp_path / "scan.nii.gz", small_image(0)))
    rows = list(compare_ways(ways, volume, ["liver", "spleen"]))
    assert [(row.way, row.structure) for row in rows] == [
        (way, name) for way in ("float32", "default") for name in ("liver", "spleen")
    ]
    assert all(
        row.logit_difference == 0 and row.dice == 1 for row in rows[:2]
    )  # without zooming in there are no windows
    assert all(0 < row.logit_difference < 0.1 for row in rows[2:])
    assert "2 structures" in way_agreement(rows[2:])
    assert "finds none" in way_agreement([replace(row, voxels=0) for row in rows])


def test_the_peak_without_pages_of_files(tmp_path: Path) -> None:
    if anonymous_rss(PROC) is None:
        pytest.skip("this system does not tell")
    with AnonymousPeak() as memory:
        before = memory.bytes
        assert before is not None
        # Straight from the system: an allocator may hand out memory that the process already had.
        with mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
            block.write(b"1" * len(block))
            end = time.monotonic() + 30
            while (memory.bytes or 0) < before + (30 << 20) and time.monotonic() < end:
                time.sleep(0.02)
    assert memory.bytes is not None
    assert memory.bytes >= before + (30 << 20)
    empty = AnonymousPeak(tmp_path)
    with empty:
        time.sleep(0.05)
    assert empty.bytes is None
