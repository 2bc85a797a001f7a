"""Curves over the number of structures that models learned from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_cases import call
from test_evaluate_slices import blobs, model, record

from adaptmedseg.evaluation.slices.diversity import diversity_points
from adaptmedseg.evaluation.slices.folder import MODELS, ScoredModel, Scores, write_scores
from adaptmedseg.evaluation.slices.scores import BACKGROUND

__all__ = ["blobs", "model"]  # fixtures
LEARNED = {"one": frozenset({"liver"}), "three": frozenset({"liver", "spleen", "aorta"})}


def test_points_are_of_new_structures_that_all_models_were_scored_on() -> None:
    """By hand: structures count alike, however many images show them."""
    records = [record("one", case, "vessel", 0.2) for case in ("p1a", "p2a", "p3a")]
    records += [record("one", "p1a", "target", 0.6), record("one", "p9a", "target", 1.0)]
    records += [record("three", case, "vessel", 0.5) for case in ("p1a", "p2a", "p3a")]
    records += [record("three", "p1a", "target", 0.9)]
    records += [record("one", "p1a", "spleen", 0.0), record("three", "p1a", "spleen", 1.0)]  # learned by one of them
    records += [record("one", "p1a", BACKGROUND, 1.0), record("published", "p1a", "vessel", 0.1)]
    points = diversity_points(records, LEARNED)
    assert [(p.learned, p.methods, p.images, p.structures) for p in points] == [
        (1, ("one",), 3, ("target", "vessel")),
        (3, ("three",), 3, ("target", "vessel")),
    ]
    assert [p.mean for p in points] == pytest.approx([0.4, 0.7])


def test_models_of_one_number_are_averaged_and_make_no_curve_alone() -> None:
    learned = {"a": frozenset({"liver"}), "b": frozenset({"spleen"})}
    records = [record("a", "p1a", "vessel", 0.2), record("b", "p1a", "vessel", 0.6)]
    assert diversity_points(records, learned) == []
    records.append(record("three", "p1a", "vessel", 0.9))
    points = diversity_points(records, learned | LEARNED)
    assert [(p.learned, p.methods) for p in points] == [(1, ("a", "b")), (3, ("three",))]
    assert [p.mean for p in points] == pytest.approx([0.4, 0.9])


def test_the_curve_is_drawn_where_there_is_one(tmp_path: Path) -> None:
    records = [record("one", "p1a", "vessel", 0.2), record("three", "p1a", "vessel", 0.9)]
    models = {name: ScoredModel(name, {}, learned=sorted(names)) for name, names in LEARNED.items()}
    report = write_scores(tmp_path / "curve", Scores(records, models), "one")
    assert "| set | vessel | text | three | 3 | 1 | 0.900 |" in report
    assert "never learned" in (tmp_path / "curve" / "task_diversity.svg").read_text(encoding="utf-8")
    write_scores(tmp_path / "none", Scores(records[:1], models), "one")
    assert not (tmp_path / "none" / "task_diversity.svg").exists()


def test_what_a_model_learned_is_kept_beside_its_scores(blobs: Path, model: Path, tmp_path: Path) -> None:
    outcome = call(
        "evaluate-slices", "--model", f"m={model}", "--data", blobs, "--out", tmp_path / "out", "--device", "cpu"
    )
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "out" / MODELS).read_text(encoding="utf-8"))["m"]["learned"] == []
