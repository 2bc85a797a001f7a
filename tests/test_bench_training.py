"""What `bench training` says: steps that are made, memory that grows with the batch, settings that fit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from small_cases import call

from adaptmedseg.bench import process
from adaptmedseg.bench import training as bench
from adaptmedseg.bench.inference import SIZES
from adaptmedseg.bench.memory_table import (
    CONTEXT,
    MARGIN,
    Row,
    Setting,
    proposals,
    read_rows,
    settings,
    shipped_rows,
    write_rows,
)
from adaptmedseg.bench.process import in_own_process, in_processes
from adaptmedseg.bench.steps import Seconds, StepSeconds
from adaptmedseg.cli.bench_training_text import parse_bytes, product_report, scaling_report
from adaptmedseg.errors import UserError
from adaptmedseg.models.segvol import SegVolConfig
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.config_file import load_config
from adaptmedseg.training.processes import Processes

ADAPT = Path(__file__).resolve().parents[1] / "configs" / "adapt.yaml"
TINY = ["batch_size=2", "structures_per_image=1", "precision=fp32", "adapter.layers.0.rank=2", "adapter.priors=null"]


def tiny(*more: str) -> TrainConfig:
    changes = dict(pair.split("=") for pair in TINY)
    values = {key: int(value) if value.isdecimal() else value for key, value in changes.items()}
    return load_config(ADAPT, TrainConfig, values | {"adapter.priors": None} | dict.fromkeys(more, True))


@pytest.fixture
def _forked(monkeypatch: pytest.MonkeyPatch, tiny_config: SegVolConfig) -> None:
    """Processes are forked and the small model is tiny: imports and sizes are nearly all that measuring costs."""
    monkeypatch.setattr(process, "START", "fork")
    monkeypatch.setitem(SIZES, "small", tiny_config)
    PartialState._reset_state()  # what processes inherit would say that they are alone


def rank_and_sum() -> tuple[int, float]:
    """What a process of several says of itself."""
    processes = Processes.join(torch.device("cpu"))
    return processes.rank, processes.total([processes.rank + 1])[0]


def die() -> None:
    os._exit(3)


def test_steps_are_measured_and_their_products_counted(tiny_config: SegVolConfig) -> None:
    plain, again = (
        bench.measure(tiny_config, tiny(*more), "cpu", 1, 1, True) for more in ((), ["compute.gradient_checkpointing"])
    )
    assert plain.seconds.step.wall > 0
    assert plain.peak >= plain.program > 0
    assert plain.flop is not None
    assert again.flop is not None
    assert plain.flop < again.flop < 2 * plain.flop  # the way there twice, the way back once
    assert plain.product is not None
    tokens = 2 * 2 * 4 * 4  # of two images
    assert plain.product[0] == 2 * tokens * tiny_config.embed_dim * tiny_config.mlp_dim


@pytest.mark.usefixtures("_forked")
def test_processes_that_know_each_other() -> None:
    assert in_processes("two", 2, rank_and_sum) == [(0, 3.0), (1, 3.0)]


@pytest.mark.usefixtures("_forked")
def test_a_process_that_dies_is_told() -> None:
    with pytest.raises(RuntimeError, match="'one' died"):
        in_own_process("one", die)


def test_scaling_by_hand() -> None:
    def one(wall: float, processor: float) -> bench.Measured:
        return bench.Measured(StepSeconds(Seconds(0, 0), Seconds(wall, processor)), 2**30, 0, 7, 1)

    first, second = scaling_report({1: [one(4, 4)], 2: [one(2.4, 2), one(2.5, 3)]}, 10)
    assert "1 processes of 1 threads: 4.00 s a step, 2.50 images a second, 1.00 times as fast as 1" in first
    assert "2.50 s a step, 4.00 images a second, 1.60 times as fast as 1" in second
    assert "of all processors 5.00 s, 1.25 times as much; peak of each 1.0 GiB" in second


def test_the_share_of_a_bare_product_by_hand() -> None:
    step, bare = Seconds(4.0, 2.0), Seconds(1.0, 0.5)
    assert "of which a step reaches 25%" in product_report(10**9, step, 10**9, bare, on_cpu=True)
    assert "0 in a second; a bare" in product_report(10**9, step, 10**9, bare, on_cpu=False)


@pytest.mark.usefixtures("_forked")
def test_the_commands_say_what_they_measured() -> None:
    outcome = call("bench", "training", *TINY, "--steps", "1", "--device", "cpu")
    assert outcome.code == 0, outcome
    head, step, memory, products, *scaling = outcome.out.splitlines()
    assert head.startswith("adapt, base size small, 2 images of 1 structures a step, fp32, cpu, 1 threads")
    assert "images a second" in step
    assert memory.startswith("peak memory: ")
    assert "of which a step reaches" in products
    assert [line.split(" ", 1)[0] for line in scaling] == ["1", "2"]
    outcome = call("bench", "frozen", "--size", "small", "--steps", "1", "--precision", "fp32", "--device", "cpu")
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("small, decoder trained, fp32, one image and one structure a step, 1 threads")
    assert "times less of the processor" in outcome.out.splitlines()[-1]


# Memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [*settings("small")], ids=str)
def test_a_setting_is_what_its_overrides_say(setting: Setting) -> None:
    changes = {key: value for key, _, value in (pair.partition("=") for pair in setting.overrides().split())}
    typed = {key: None if value == "null" else value for key, value in changes.items()}
    assert setting.applied(load_config(ADAPT, TrainConfig)) == load_config(ADAPT, TrainConfig, typed)


def row(training_mib: int, **changes: int | str | bool) -> Row:
    values = {"size": "small", "rank": 16, "images": 1, "structures": 1, "precision": "bf16", "checkpointing": False}
    return Row(Setting(**(values | changes)), training_mib + 900, training_mib, 1.0, "cpu")  # type: ignore[arg-type]


def test_what_fits_and_does_most_is_proposed() -> None:
    rows = [row(500), row(900, images=2), row(700, images=2, checkpointing=True), row(5000, images=4), row(990, rank=0)]
    assert proposals(rows, rows[1].needed()) == [rows[1]]
    assert proposals(rows, rows[1].needed() - 1) == [rows[2]]
    assert proposals(rows, rows[4].needed()) == [rows[1], rows[4]]
    assert proposals(rows, rows[0].needed() - 1) == []
    assert rows[0].needed() == 500 * 2**20 * MARGIN + CONTEXT


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [row(500), row(900, images=2, checkpointing=True)]
    write_rows(tmp_path / "table.csv", rows)
    assert read_rows(tmp_path / "table.csv") == rows
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="is no table of"):
        read_rows(tmp_path / "other.csv")


def test_the_shipped_table_holds_what_it_should() -> None:
    rows = shipped_rows()
    assert {row.setting.size for row in rows} == set(SIZES)
    by_setting = {row.setting: row for row in rows}
    assert len(by_setting) == len(rows)
    for found in rows:
        assert found.setting in set(settings(found.setting.size))
        assert 0 < found.training_mib < found.peak_mib
    small, large = (by_setting[Setting(size, 16, 1, 1, "bf16", False)] for size in ("small", "released"))
    assert large.training_mib > 2 * small.training_mib


@pytest.mark.usefixtures("_forked")
def test_memory_is_measured_into_a_table_that_goes_on(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    command = ["bench", "training-memory", "--out", table, "--device", "cpu", "--only"]
    outcome = call(*command, "10")
    assert outcome.code == 0, outcome
    (measured,) = read_rows(table)
    assert measured.setting == Setting("small", 16, 1, 1, "bf16", False)
    before = table.read_bytes()
    outcome = call(*command, "10")
    assert "measuring" not in outcome.err
    assert table.read_bytes() == before
    outcome = call("bench", "training", "--budget", "8GB", "--table", table)
    assert "small: " in outcome.out
    assert "adapter.layers.0.rank=16 batch_size=1" in outcome.out
    outcome = call("bench", "training", "--budget", "1MB", "--table", table)
    assert "1MB: nothing of the table fits; the least of the table is" in outcome.out


# Bad input ------------------------------------------------------------------------------


def test_amounts_of_memory() -> None:
    assert [parse_bytes(text) for text in ("8GB", "7.5 GiB", "512mib", "1B")] == [8 * 10**9, 15 * 2**29, 2**29, 1]


BAD = {
    "--budget much: give an amount of memory": ["training", "--budget", "much"],
    "--budget 0GB: give an amount of memory": ["training", "--budget", "0GB"],
    "no.csv: is no table of `adaptmedseg bench training-memory`": ["training", "--budget", "8GB", "--table", "no.csv"],
    "--size huge: choose one of": ["training", "--size", "huge", "--processes", "1"],
    "--processes 0: give numbers of processes": ["training", "--processes", "0"],
    "batch_size 3: 2 processes cannot share it": ["training", "batch_size=3"],
    "structures_per_image 20: at most 16 here": ["training", "structures_per_image=20"],
    "measured are trainings of a base": ["training", "--config", "unet"],
    "has no adapter on layers": ["training-memory", "--out", "x.csv", "--config", "strategies/full"],
    "--only 99: give numbers from 0 to": ["training-memory", "--out", "x.csv", "--only", "99"],
    "--trained all: choose one of decoder": ["frozen", "--trained", "all"],
    "--precision half: choose fp32 or bf16": ["frozen", "--precision", "half"],
}


@pytest.mark.parametrize("says", BAD)
def test_bad_input_is_one_sentence(says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call("bench", *BAD[says], "--device", "cpu") if "--budget" not in BAD[says] else call("bench", *BAD[says])
    assert outcome.code == 2, outcome
    assert says in outcome.err
    assert outcome.err.count("\n") == 1
    assert not any(tmp_path.iterdir())
