"""From a study folder to its report."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.overlays import pick_cases
from adaptmedseg.evaluation.page import PageFigure, ReportTable
from adaptmedseg.evaluation.records import Record, read_scores
from adaptmedseg.evaluation.report import (
    Command,
    DataSource,
    Method,
    Overlay,
    ReportInput,
    ReportPaths,
    Settings,
    write_report,
)
from adaptmedseg.evaluation.study import MAX_PICTURES, OVERLAYS, RESULTS, StudyNotes, read_notes, read_overlay_index
from adaptmedseg.evaluation.verdict import GateCheck, Goals, verdict
from adaptmedseg.inference.loading import BASE_HASH

PACKAGES = ("adaptmedseg", "torch", "monai", "torchio", "accelerate", "numpy", "nibabel")


@dataclass(frozen=True)
class ReportText:
    """What the caller adds to a study: title, which methods are compared, run folders whose curves are shown, ..."""

    title: str
    base: str | None = None
    adapted: str | None = None
    runs: Mapping[str, Path] = field(default_factory=dict)
    goals: Goals | None = None
    next_commands: Sequence[Command] = ()
    caveats: Sequence[str] = ()
    tables: Sequence[ReportTable] = ()
    figures: Sequence[PageFigure] = ()
    sentences: Sequence[str] = ()
    configs: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


def package_versions() -> dict[str, str]:
    """Versions of what computes scores."""
    return {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}


def report_study(folder: Path, out: Path, text: ReportText) -> ReportPaths:
    """Write the report of a study folder. UserError where scores or notes are missing or a method is unknown."""
    records, notes = read_scores(folder / RESULTS), read_notes(folder)
    names = list(dict.fromkeys(record.method for record in records))
    base, adapted = text.base or names[0], text.adapted or names[-1]
    names.sort(key=lambda name: name == adapted)  # the judged method comes last in tables and figures
    for name in (base, adapted):
        if name not in names:
            raise UserError(f"{folder}: has no scores of '{name}'; its methods are {', '.join(names)}")
    report = ReportInput(
        title=text.title,
        verdict=[*text.sentences, *_verdict(records, notes, base, adapted, text.goals)],
        records=records,
        methods=[Method(name, name, notes.methods.get(name, "")) for name in names],
        comparisons=[(base, name) for name in names if name != base],
        histories={label: _history(path) for label, path in text.runs.items()},
        overlays=_overlays(folder, records, adapted),
        settings=_settings(notes, text),
        next_commands=text.next_commands,
        caveats=text.caveats,
        tables=text.tables,
        figures=text.figures,
        asked=notes.asked,
        seed=text.seed,
    )
    return write_report(out, report)


def _verdict(records: Sequence[Record], notes: StudyNotes, base: str, adapted: str, goals: Goals | None) -> list[str]:
    if base == adapted and len({record.method for record in records}) > 1:
        return [f"What {base} is held against is in the tables below."]
    if base == adapted:
        return [f"One method, {base}, was scored; there is nothing to compare it with."]
    gate = None
    weights = notes.hashes.get(f"{base}, {BASE_HASH}")
    # The gate promises the output of the adapter's own base, so a comparison with another model says nothing of it.
    if notes.gate_on is not None and weights is not None and weights == notes.hashes.get(f"{adapted}, {BASE_HASH}"):
        gate = GateCheck(notes.gate_on, notes.gate_compared, notes.gate_identical)
    return verdict(records, base=base, adapted=adapted, gate=gate, goals=goals)


def _history(run: Path) -> list[dict[str, float]]:
    try:
        return json.loads((run / "history.json").read_text(encoding="utf-8"))["rows"]
    except (OSError, KeyError, json.JSONDecodeError):
        raise UserError(f"{run / 'history.json'}: missing or damaged; name the folder of a finished training") from None


def _config(run: Path) -> str:
    try:
        return (run / "config.yaml").read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"{run / 'config.yaml'}: missing; name the folder of a finished training") from None


def _overlays(folder: Path, records: Sequence[Record], method: str) -> list[Overlay]:
    """Pictures of the worst, median and best of those scores that have one."""
    files = {}
    for entry in read_overlay_index(folder):
        record = Record(**entry["record"])
        if (folder / OVERLAYS / entry["file"]).is_file():
            files[record.method, record.case_key, record.structure] = folder / OVERLAYS / entry["file"]
    shown = [record for record in records if (record.method, record.case_key, record.structure) in files]
    return [
        Overlay(files[record.method, record.case_key, record.structure].read_bytes(), record, rank)
        for rank, record in pick_cases(shown, method, MAX_PICTURES)
    ]


def _settings(notes: StudyNotes, text: ReportText) -> Settings:
    given = {**text.configs, **{label: _config(path) for label, path in text.runs.items()}}
    configs = [f"# {label}\n{config}" for label, config in given.items()]
    return Settings(
        config_yaml="\n".join(configs),
        seeds={"report": text.seed, **notes.seeds},
        hashes=notes.hashes,
        versions=notes.versions or package_versions(),
        licences=notes.licences,
        hardware={
            "processor cores": str(os.cpu_count()),
            "graphics processor": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        },
        timings=text.timings,
        data=[
            DataSource(name, entry.get("origin", ""), entry.get("licence", "not stated"), entry.get("cases", ""))
            for name, entry in notes.data.items()
        ],
    )
