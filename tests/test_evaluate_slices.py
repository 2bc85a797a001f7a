"""Scores of slices: values by hand, background and average, support-size curves, paired tests, and the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sam_cases import TINY_SAM
from small_cases import call
from test_slice_training import blob_folder

from adaptmedseg.checkpoints.sam import save_sam
from adaptmedseg.comparison.support_unet import train_unet
from adaptmedseg.data.overlap import dice
from adaptmedseg.data.pictures.dataset import SliceDataset, SliceItem
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import Record, read_results
from adaptmedseg.evaluation.slices.asking import Queries, SliceMethod, prompt_of
from adaptmedseg.evaluation.slices.by_support import SupportStudy, apart_from, score_supports
from adaptmedseg.evaluation.slices.points import common_items, support_points
from adaptmedseg.evaluation.slices.scores import BACKGROUND, slice_measures
from adaptmedseg.evaluation.slices.tables import AVERAGE, paired_tests, slice_report, structure_rows
from adaptmedseg.evaluation.surfaces import surface_distances
from adaptmedseg.inference.picture_loading import load_picture_model
from adaptmedseg.inference.support.supports import Support
from adaptmedseg.models.sam import Sam


def square(top: int, side: int, size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, top : top + side] = True
    return mask


def test_measures_of_a_square_by_hand() -> None:
    inner, outer = square(5, 4), square(4, 6)  # one pixel further on every side
    found = slice_measures(inner, outer, (2.0, 2.0))
    assert found["jaccard"] == pytest.approx(16 / 36)
    assert found["asd_mm"] == pytest.approx(2.0)  # each outline pixel of the inner one is one pixel of 2 mm away
    assert found["nsd_1px"] == pytest.approx((12 + 16) / (12 + 20))  # the outer one's four corners are √2 pixels away
    assert found["truth_share"] == pytest.approx(36 / 400)
    unknown = slice_measures(inner, outer, None)
    assert unknown["asd_mm"] is None
    assert unknown["nsd_1px"] == found["nsd_1px"]


def test_empty_masks_have_no_distance_and_no_score_together() -> None:
    nothing = np.zeros((8, 8), bool)
    alone, both = slice_measures(nothing, square(2, 3, 8), (1.0, 1.0)), slice_measures(nothing, nothing, (1.0, 1.0))
    assert (alone["jaccard"], alone["nsd_1px"], alone["asd_mm"], alone["component_recall"]) == (0, 0, None, 0)
    assert (both["jaccard"], both["nsd_1px"], both["component_recall"]) == (None, None, None)


def test_an_outline_is_that_of_a_volume_that_goes_on_above_and_below() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 12, 15)) > 0.6
    flat = surface_distances(one, other, (1.5, 0.8))
    tall = surface_distances(*(np.repeat(mask[None], 9, axis=0) for mask in (one, other)), (1.0, 1.5, 0.8))
    # The middle of a pile of equal slices has the slice's own outline; its lids do not count there.
    assert flat.hausdorff(100) >= tall.hausdorff(100) - 1e-9
    np.testing.assert_allclose(np.sort(flat.to_truth.mm), np.sort(_brute(one, other, (1.5, 0.8))), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="surfels are made of volumes"):
        surface_distances(one, other, (1.0, 1.0), "surfels")


def _brute(mask: np.ndarray, other: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Every pair of outline pixels, one by one."""
    first, second = (np.array(_outline(m)) * spacing for m in (mask, other))
    return np.sqrt(((first[:, None] - second[None]) ** 2).sum(-1)).min(1)


def _outline(mask: np.ndarray) -> list[tuple[int, int]]:
    around = ((0, 1), (1, 0), (0, -1), (-1, 0))
    inside = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    return [(y, x) for y, x in inside if any((y + dy, x + dx) not in inside for dy, dx in around)]


def record(method: str, case: str, structure: str, score: float | None, *, draw: int | None = None,
           origin: str = "text") -> Record:  # fmt: skip
    extra = {"jaccard": score, "truth_share": 5e-4, "component_recall": score}
    return Record(
        method, "set", "MRI", case, case[:2], structure, origin, score, 0.0, 0.0, fold=draw, extra=extra,
    )  # fmt: skip


def test_the_average_is_over_structures_and_leaves_the_background_out() -> None:
    records = [record("m", case, "liver", 0.8) for case in ("p1a", "p2a", "p3a")]
    records += [record("m", "p1a", "spleen", 0.2), record("m", "p2a", "spleen", None)]
    records += [record("m", case, BACKGROUND, 1.0) for case in ("p1a", "p2a")]
    rows = {row.structure: row for row in structure_rows(records)}
    assert list(rows) == ["liver", "spleen", BACKGROUND, AVERAGE]
    assert rows[AVERAGE].means[0] == pytest.approx(0.5)
    assert rows[AVERAGE].images == 3
    assert rows["spleen"].means[0] == pytest.approx(0.2)
    assert rows["liver"].means[4] == pytest.approx(0.8)  # the share of small targets found


def of_supports(count: int, case: str, structure: str, score: float, draw: int = 0) -> Record:
    return record("s", case, structure, score, draw=draw, origin=f"{count} support{'s' if count > 1 else ''}")


def test_points_are_means_over_draws_of_means_over_structures() -> None:
    scores = [("p1a", "liver", 0.6), ("p2a", "liver", 0.8), ("p1a", "spleen", 0.1)]
    records = [of_supports(4, *score) for score in scores]
    records += [of_supports(4, case, structure, score + 0.1, draw=1) for case, structure, score in scores]
    (point,) = support_points(records)
    assert (point.shots, point.draws) == (4, 2)
    assert point.mean == pytest.approx((0.4 + 0.5) / 2)
    assert point.sd == pytest.approx(np.std([0.4, 0.5], ddof=1))


def test_a_curve_averages_what_all_its_points_have() -> None:
    """A rare and hard structure has no large support sets: a curve over whatever there is would rise by that alone."""
    records = [of_supports(n, case, "liver", 0.8) for n in (1, 16) for case in ("p1a", "p2a")]
    records += [of_supports(1, "p1a", "gallbladder", 0.2), of_supports(1, "p3a", "liver", 0.0)]
    assert [point.mean for point in support_points(records)] == pytest.approx([0.8, 0.8])
    report = slice_report(records, "s")
    assert "compared on the same 2 images of liver; not of gallbladder, which some of them lack." in report
    apart = [of_supports(1, "p1a", "liver", 0.8), of_supports(4, "p2a", "liver", 0.8)]
    assert support_points(apart) == []
    assert "no image in common" in slice_report(apart, "s")
    assert common_items(apart)["set"].images == 0


def test_paired_tests_count_patients() -> None:
    records = [record("a", f"p{i}{part}", "liver", 0.5) for i in range(6) for part in "xy"]
    records += [record("b", f"p{i}{part}", "liver", 0.5 + 0.01 * (i + 1)) for i in range(6) for part in "xy"]
    (test,) = paired_tests(records, "a")
    assert test.patients == 6
    assert test.difference == pytest.approx(0.035)
    assert test.p == pytest.approx(2 / 2**6)  # all six of one sign


def test_methods_that_were_asked_otherwise_than_the_reference_are_not_compared_with_it() -> None:
    records = [record("a", f"p{i}", "liver", 0.5) for i in range(3)]
    records += [record("b", f"p{i}", "liver", 0.6, origin="oracle box") for i in range(3)]
    assert paired_tests(records, "a") == []
    assert "| b | oracle box" in slice_report(records, "a")


def test_prompts_are_made_from_the_truth_alone() -> None:
    truth = square(5, 4)
    box = prompt_of(truth, "x", "oracle box", "image").box
    assert box is not None
    assert box.tolist() == [[5, 5], [8, 8]]
    point = prompt_of(truth, "x", "oracle point", "image").points
    assert point is not None
    assert truth[tuple(point[0].long().tolist())]
    assert prompt_of(truth, "x", "class", "image").kind == (False, 0, False)


def test_the_unet_learns_its_supports() -> None:
    rng = np.random.default_rng(0)
    supports = []
    for top in (4, 20, 36):
        mask = square(top, 20, 64)
        image = rng.normal(90, 10, (64, 64, 3)) + 80 * mask[..., None]
        supports.append(Support(str(top), str(top), image.clip(0, 255).astype(np.uint8), {"square": mask}))
    segment = train_unet(supports, "square", seconds=4, seed=0)
    found = segment(supports[1].image)
    assert found.shape == (64, 64)
    assert (dice(found, supports[1].masks["square"]) or 0) > 0.7


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("blobs")
    outcome = call("slices", blob_folder(root / "raw", 8), "--out", root / "s", "--label", "1=disc", "--label",
                   "2=square", "--val-fraction", "0", "--test-fraction", "0.4")  # fmt: skip
    assert outcome.code == 0, outcome.err
    return root / "s"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "sam.safetensors"
    save_sam(path, Sam(TINY_SAM), {"name": "tiny"})
    return path


def test_support_sets_against_their_baselines(blobs: Path, model: Path, tmp_path: Path) -> None:
    outcome = call("evaluate-slices", "--model", f"sam={model}", "--data", blobs, "--shots", "1,3,9,3", "--structures",
                   "disc", "--unet", "--limit", "2", "--out", tmp_path / "o", "--device", "cpu")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "so that 9 supports are left out" in outcome.err
    records = read_results(tmp_path / "o" / "results.jsonl")
    assert {r.method for r in records} == {"support set", "nearest prototype", "U-Net"}
    assert {r.prompt_origin for r in records} == {"1 support", "3 supports"}
    assert len({r.score_key for r in records}) == len(records)  # no size is asked twice
    assert not any(r.is_oracle for r in records)
    assert "| set | method | 1 support | 3 supports |" in outcome.out
    assert (tmp_path / "o" / "supports_raw.svg").is_file()


def study_queries(blobs: Path, count: int) -> tuple[SliceDataset, Queries]:
    dataset = SliceDataset.open(blobs)
    return dataset, Queries(dataset, dataset.items("test")[:count], ["disc"])


def test_no_image_of_a_scored_patient_is_a_support(blobs: Path) -> None:
    dataset, queries = study_queries(blobs, 1)
    asked = queries.items[0]
    pool = dataset.items("train")
    assert apart_from(pool, queries) == pool
    other_file = replace(pool[0], source={"image": {"sha256": "new"}})
    own, same_file = replace(other_file, patient=asked.patient), replace(pool[0], source=asked.source)
    assert apart_from([own, same_file, pool[1]], queries) == [pool[1]]
    with pytest.raises(UserError, match="all 2 images to draw supports from are of patients that are scored"):
        apart_from([own, same_file], queries)


def test_only_drawn_supports_are_read(blobs: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, queries = study_queries(blobs, 1)
    read: list[str] = []
    image = SliceItem.image
    monkeypatch.setattr(SliceItem, "image", lambda item: read.append(item.id) or image(item))
    method = SliceMethod("sam", load_picture_model(str(model)))
    study = SupportStudy([2], methods=("nearest prototype",))
    records = score_supports(method, dataset.items("train"), queries, study, torch.device("cpu"))
    assert [record.case for record in records] == [queries.items[0].id]
    assert len(read) == 3


def test_prompts_of_two_models_are_compared(blobs: Path, model: Path, tmp_path: Path) -> None:
    options = ["--data", blobs, "--ask", "oracle box", "--out", tmp_path / "o", "--device", "cpu"]
    outcome = call("evaluate-slices", "--model", f"a={model}", "--model", f"b={model}", *options)
    assert outcome.code == 0, outcome.err
    records = read_results(tmp_path / "o" / "results.jsonl")
    assert all(r.is_oracle for r in records)
    assert BACKGROUND not in {r.structure for r in records}
    assert "b \N{MINUS SIGN} a" in outcome.out
    again = call("evaluate-slices", "--model", f"a={model}", *options)
    assert "holds another evaluation" in again.err


def test_each_set_is_asked_for_the_named_structures_that_it_has(blobs: Path, model: Path, tmp_path: Path) -> None:
    labels = ["--label", "1=disc", "--label", "2=ring", "--val-fraction", "0", "--test-fraction", "0.4"]
    made = call("slices", blob_folder(tmp_path / "raw", 4), "--out", tmp_path / "rings", "--name", "rings", *labels)
    assert made.code == 0, made.err
    options = ["--model", f"a={model}", "--data", blobs, "--data", tmp_path / "rings", "--device", "cpu"]
    outcome = call("evaluate-slices", *options, "--structures", "square,ring", "--out", tmp_path / "o")
    assert outcome.code == 0, outcome.err
    asked = {(r.dataset, r.structure) for r in read_results(tmp_path / "o" / "results.jsonl")}
    assert asked == {(SliceDataset.open(blobs).name, "square"), ("rings", "ring")}
    none = call("evaluate-slices", *options, "--structures", "square", "--out", tmp_path / "none")
    assert none.code == 2
    assert "rings has none of square; it has disc, ring" in none.err


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_sam(path, Sam(TINY_SAM), {"name": "other tiny"})
    return path


@pytest.mark.parametrize("ask", [["--ask", "oracle box"], ["--shots", "1"]])
def test_another_model_never_gets_the_name_of_scores_before(
    blobs: Path, model: Path, other_model: Path, tmp_path: Path, ask: list[str]
) -> None:
    out = tmp_path / "o"
    options = ["--data", blobs, "--structures", "disc", "--limit", "1", "--out", out, *ask, "--device", "cpu"]
    assert call("evaluate-slices", "--model", f"a={model}", *options).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused = call("evaluate-slices", "--model", f"a={other_model}", *options, "--append")
    assert refused.code == 2
    assert str(model) in refused.err
    assert str(other_model) in refused.err
    assert refused.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    again = call("evaluate-slices", "--model", f"a={model}", *options, "--append", "--limit", "2")
    assert again.code == 0, again.err
    assert len({record.case for record in read_results(out / "results.jsonl")}) == 2
    (out / "models.json").unlink()
    unknown = call("evaluate-slices", "--model", f"a={model}", *options, "--append")
    assert unknown.code == 2
    assert "nobody can tell which models" in unknown.err


def test_supports_of_two_draws_are_not_mixed(blobs: Path, model: Path, tmp_path: Path) -> None:
    options = [
        "--model",
        f"a={model}",
        "--data",
        blobs,
        "--structures",
        "disc",
        "--shots",
        "1",
        "--out",
        tmp_path / "o",
    ]
    assert call("evaluate-slices", *options, "--limit", "1", "--device", "cpu").code == 0
    other = call("evaluate-slices", *options, "--seed", "1", "--append", "--device", "cpu")
    assert other.code == 2
    assert "are of supports drawn with --seed 0, not 1" in other.err
    more = call("evaluate-slices", *options, "--limit", "2", "--append", "--device", "cpu")
    assert more.code == 0, more.err  # scores of the same image are replaced
    fewer = call("evaluate-slices", *options, "--limit", "1", "--append", "--device", "cpu")
    assert fewer.code == 2
    assert "in 2 images of raw, not all of them among the 1 asked for, whose supports are others" in fewer.err
    assert fewer.err.count("\n") == 1
    other = call("evaluate-slices", *options, "--split", "val", "--append")
    assert "holds scores of the split 'test', not 'val'" in other.err


def test_another_set_of_the_name_is_not_mixed_in(blobs: Path, model: Path, tmp_path: Path) -> None:
    raw, other, out = blobs.parent / "raw", tmp_path / "other", tmp_path / "o"
    made = call("slices", raw, "--out", other, "--label", "1=square", "--label", "2=disc", "--test-fraction", "0.4")
    assert made.code == 0, made.err
    options = ["--model", f"a={model}", "--structures", "disc", "--limit", "1", "--out", out, "--device", "cpu"]
    assert call("evaluate-slices", *options, "--data", blobs).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused = call("evaluate-slices", *options, "--data", other, "--append")
    assert refused.code == 2
    assert "its scores of the set 'raw' are of other images, masks or splits" in refused.err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert call("evaluate-slices", *options, "--data", blobs, "--append").code == 0
    (out / "sets.json").write_text("{", encoding="utf-8")
    damaged = call("evaluate-slices", *options, "--data", blobs, "--append")
    assert damaged.code == 2
    assert "nobody can tell which sets" in damaged.err


WRONG = {
    "one set twice": (["--data", "{blobs}"], "are sets of one name, 'raw'; give each set once"),
    "way": (["--ask", "text"], "--ask text: choose one of class, oracle box, oracle point"),
    "prompts and supports": (["--ask", "oracle box", "--shots", "1"], "--ask oracle box: prompts, and --shots 1 asks"),
    "draws of no supports": (["--draws", "1"], "--draws 1: is of support sets; say their sizes with --shots"),
    "U-Net without supports": (["--unet"], "--unet: is of support sets; say their sizes with --shots"),
    "class": (["--ask", "class"], "knows no class of"),
    "shots": (["--shots", "0,x"], "--shots 0,x: give numbers of supports from 1 to 64"),
    "too many shots": (["--shots", "4,65"], "--shots 4,65: give numbers of supports from 1 to 64"),
    "learnt and scored": (["--shots", "1", "--split", "train"], "are of patients that are scored"),
    "split": (["--split", "new"], "--split new: choose one of"),
    "no images": (["--split", "val"], "has no val image of disc, square"),
    "structure": (["--structures", "liver"], "--structures: 'liver' is not in"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_told_in_a_sentence(blobs: Path, model: Path, tmp_path: Path, case: str) -> None:
    options, message = WRONG[case]
    more = [option.format(blobs=blobs) for option in options]
    outcome = call("evaluate-slices", "--model", f"a={model}", "--data", blobs, *more, "--out", tmp_path / "o")
    assert outcome.code == 2, outcome.out
    assert message in outcome.err
    assert not (tmp_path / "o").exists()


def test_classes_are_scored_with_background_and_images_of_the_training_refused(
    blobs: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = call("train", "2d/samed", "--data", blobs, "--base", model, "--out", tmp_path / "run", "--device", "cpu",
                   "budget.minutes=null", "budget.steps=1", "precision=fp32")  # fmt: skip
    assert trained.code == 0, trained.err
    options = ["--model", f"samed={tmp_path / 'run'}", "--data", blobs, "--device", "cpu"]
    outcome = call("evaluate-slices", *options, "--out", tmp_path / "o")
    assert outcome.code == 0, outcome.err
    records = read_results(tmp_path / "o" / "results.jsonl")
    assert {r.structure for r in records} == {"disc", "square", BACKGROUND}
    assert {r.prompt_origin for r in records} == {"text"}
    part = call("evaluate-slices", *options, "--structures", "disc", "--out", tmp_path / "part")
    assert part.code == 0, part.err
    assert {r.structure for r in read_results(tmp_path / "part" / "results.jsonl")} == {"disc"}
    with monkeypatch.context() as patch:
        patch.setattr("adaptmedseg.cli.evaluate_slices.score_prompts", lambda *_: pytest.fail("scored before refused"))
        lacking = call(
            "evaluate-slices", *options, "--model", f"sam={model}", "--ask", "class", "--out", tmp_path / "q"
        )
    assert lacking.code == 2, lacking.err
    assert "model 'sam': knows no class of raw (classes: none)" in lacking.err
    seen = call("evaluate-slices", *options, "--split", "train", "--out", tmp_path / "p")
    assert seen.code == 2
    assert "was trained on this image" in seen.err
