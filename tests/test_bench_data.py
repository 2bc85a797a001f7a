"""The data benchmark compares like with like, and says what it measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_cases import small_folder

from adaptmedseg.bench import data as bench
from adaptmedseg.cli.bench import data_report


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.01)
    monkeypatch.setattr(bench, "TURNS", 2)
    monkeypatch.setattr(bench, "CROP", (4, 8, 8))


def test_a_generated_volume() -> None:
    found = bench.bench_generated((12, 40, 40), 3)
    assert (found.cases, found.structures, found.plain_prepare) == (1, 3, None)
    assert found.difference < 1e-6
    assert found.our_bytes < found.plain_bytes
    assert len(data_report("generated", found)) == 4


def test_a_source_is_prepared_both_ways(tmp_path: Path) -> None:
    found = bench.bench_source(small_folder(tmp_path, 3), "T2 MRI", {1: "liver", 2: "spleen"}, 1)
    assert found.cases == 3
    assert found.difference < 1e-6
    assert found.plain_prepare is not None
    assert found.our_prepare is not None
    assert "preparing" in data_report("x", found)[1]


def test_both_ways_cut_the_same_crop(tmp_path: Path) -> None:
    source = small_folder(tmp_path / "in", 1)
    labels = {1: "liver", 2: "spleen"}
    (case,) = bench._prepare(source, tmp_path / "ours", "T2 MRI", labels, 1).cases()
    bench._prepare_plainly(source, tmp_path / "plain", labels)
    for seed in range(5):
        plain = bench.plain_crop(tmp_path / "plain", case.id, np.random.default_rng(seed))
        ours = bench.our_crop(case, np.random.default_rng(seed))
        np.testing.assert_allclose(ours[0], plain[0], atol=1e-6)
        np.testing.assert_array_equal(ours[1], plain[1])
