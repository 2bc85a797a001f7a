"""Finished runs made up of plain numbers, in memory and on disk as `compare` leaves them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from small_cases import MODALITY

from adaptmedseg.comparison.finished import Finished, FinishedRun
from adaptmedseg.comparison.job import Cost
from adaptmedseg.evaluation.records import Record, write_results

COST = Cost(trained=10, file_bytes=1000, steps=5, minutes=0.5, peak_mib=100)


def record(method: str, case: str, dice: float | None, dataset: str = "mri", **changes: object) -> Record:
    modality = "CT" if dataset == "ct" else MODALITY
    plain = Record(method, dataset, modality, case, case, "prostate", "text", dice, 10.0, 12.0)
    return replace(plain, **changes)  # type: ignore[arg-type]


def run(strategy: str, values: Sequence[float], seed: int | None = 0, **changes: object) -> FinishedRun:
    """Scores of MRI cases; CT is 0.8, and 0.1 less for what was trained without a gate."""
    old = 0.8 if seed is None or strategy == "gated" else 0.7
    records = [record(strategy, str(i), value) for i, value in enumerate(values)]
    records += [record(strategy, f"ct{i}", old + 0.01 * i, "ct") for i in range(4)]
    plain = FinishedRun(strategy, records, seed, cost=None if seed is None else COST)
    return replace(plain, **changes)  # type: ignore[arg-type]


def finished(*more: FinishedRun) -> Finished:
    low, high = [0.1] * 6, [0.3 + 0.1 * i for i in range(6)]
    runs = [run("base", low, None), run("gated", high), run("gated", [v + 0.1 for v in high], 1), run("lora", high)]
    return Finished(runs=[*runs, *more], new={"mri"}, old={"ct"})


def write_comparison(folder: Path, patients: int | None = None, **changes: object) -> Path:
    """What `compare` leaves: a base, two seeds of a strategy and one that was not finished."""
    terms = {
        "new": {"nowhere/mri": "a"}, "old": {"nowhere/ct": "b"}, "base": "small", "base_hash": "c",
        "budget": {"steps": 5, "minutes": None}, "fold": None, "patients": patients,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "comparison.json").write_text(json.dumps(terms | changes), encoding="utf-8")
    for one in finished().runs:
        place = folder / one.strategy / f"seed{one.seed}" if one.seed is not None else folder / one.strategy
        place.mkdir(parents=True)
        config = "null" if one.seed is None else f"{{seed: {one.seed}, model: segvol, later: key}}"
        (place / "job.yaml").write_text(f"name: {one.strategy}\nconfig: {config}\n", encoding="utf-8")
        write_results(place / "results.jsonl", one.records)
        if one.cost is not None:
            (place / "cost.json").write_text(one.cost.model_dump_json(), encoding="utf-8")
    return folder
