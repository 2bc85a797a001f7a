"""The demo from start to end, with a tiny model and a few phantoms."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch
import yaml
from conftest import TINY
from small_cases import call

from adaptmedseg.checkpoints.store import save_base
from adaptmedseg.models.segvol import SegVol

CONFIG = {
    "name": "tiny demo",
    "budget": {"steps": 2},
    "precision": "fp32",
    "adapter": {"layers": [{"rank": 2}], "priors": {"blocks": 1, "modality_tokens": 2}},
}


def test_the_demo_tells_its_whole_story(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_base(tmp_path / "base.safetensors", SegVol(TINY), {"name": "tiny"})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    out = tmp_path / "demo"
    demo = ["demo", "--out", out, "--model", tmp_path / "base.safetensors", "--config", tmp_path / "tiny.yaml"]
    outcome = call(*demo, "--test-cases", "2", "--train-cases", "2", "--device", "cpu")
    assert outcome.code == 0, outcome
    report = out / "report"
    for name in ("report.html", "report.md", "results.csv"):
        assert (report / name).stat().st_size > 500
    rows = list(csv.DictReader((report / "results.csv").open(encoding="utf-8")))
    assert {(row["method"], row["modality"]) for row in rows} == {
        *((method, modality) for method in ("base", "adapted") for modality in ("CT", "T1 MRI", "T2 MRI")),
        ("adapted, gate off", "CT"),
    }
    ct = {m: [r["dice"] for r in rows if r["modality"] == "CT" and r["method"] == m] for m in ("base", "adapted")}
    assert ct["base"] == ct["adapted"]
    notes = json.loads((report / "study.json").read_text(encoding="utf-8"))
    assert (notes["gate_on"], notes["gate_compared"], notes["gate_identical"]) == (True, 2, 2)
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "The modality gate is on" in text
    assert "bit for bit (checked on 2 CT cases)" in text
    assert "adaptmedseg predict SCAN.nii.gz" in text
    assert outcome.out.startswith("# From CT to MRI: the demo")
    assert str(report / "report.html") in outcome.out
    assert (out / "adapter" / "model.safetensors").is_file()
    assert not list(out.rglob("*.partial"))


def test_the_demo_says_early_what_it_lacks(tmp_path: Path) -> None:
    outcome = call("demo", "--out", tmp_path / "demo", "--model", tmp_path / "none.safetensors")
    assert (outcome.code, outcome.out) == (2, "")
    assert "none.safetensors: no such model file" in outcome.err
    assert not list(tmp_path.iterdir())
