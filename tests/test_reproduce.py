"""Receipts: published tables are what they were, ours never take their place, and what is missing is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapter_cases import adapted, one_kind
from adaptmedseg.preprocessing.folder import prepare_folder
from sam_cases import TINY_SAM
from small_cases import MODALITY, call, small_folder
from test_slice_training import blob_folder

from adaptmedseg.adapters.file import save_adapter
from adaptmedseg.checkpoints.sam import save_sam
from adaptmedseg.checkpoints.store import save_base
from adaptmedseg.evaluation.records import read_results
from adaptmedseg.evaluation.tables import Row
from adaptmedseg.inference.loading import load_model
from adaptmedseg.models.adapter_config import AdapterConfig, PriorsConfig
from adaptmedseg.models.sam import Sam
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.reproduction.receipt import Line, code_fingerprint, fingerprint
from adaptmedseg.reproduction.recipes import ALL, recipe, recipe_names
from adaptmedseg.reproduction.slices import SliceEvaluator
from adaptmedseg.reproduction.volumes import kind_of

PLACE = ("LoRA", "MRI", "prostate", "dice")


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Four MRI cases that annotate the prostate: one to learn from, three to test on."""
    source = small_folder(tmp_path / "source", 4)
    out = tmp_path / "prepared"
    labels = {1: "prostate", 2: "background"}
    prepare_folder(
        source, out, name="small", modality=MODALITY, labels=labels, test_fraction=0.75, val_fraction=0.0
    )  # fmt: skip
    return out


@pytest.fixture
def base(tmp_path: Path, tiny_base: SegVol) -> Path:
    path = tmp_path / "base.safetensors"
    save_base(path, tiny_base, {"name": "tiny"})
    return path


def row(mean: float, interval: tuple[float, float] | None) -> Row:
    return Row("MRI", "prostate", "LoRA", "text", 5, 5, 0, mean, 0.1, interval)


def test_every_published_table_can_be_read() -> None:
    assert {"prostate-mri", "ct-mri-400", "gmiseg-table2", "flare22-slices", "cotraining"} <= set(recipe_names())
    for name in recipe_names():
        found = recipe(name)
        assert found.source
        assert all(found.models[method].needs for method in found.ours)


def test_published_figures_are_those_of_their_source(shared_data: Path) -> None:
    """Against the collection that they were taken from, where it is there."""
    path = shared_data.parent / "design" / "published.json"
    if not path.exists():
        pytest.skip("the collection of published tables is not here")
    published = json.loads(path.read_text(encoding="utf-8"))
    study = published["segvol_adaptation_study_dice"]
    of_study = {(r.group, r.structure, m): v for r in recipe("ct-mri-400").rows for m, v in r.values.items()}
    expected = {(g, s, m): v for g in ("CT", "MRI") for m, table in study[g].items() for s, v in table.items()}
    overall = {m: v for m, v in study["overall"].items() if "," not in m}
    expected |= {("CT + MRI", ALL, m): v for m, v in overall.items()}
    expected[("CT", ALL, "SegVol")] = study["overall"]["SegVol, CT only"]
    assert of_study == expected
    (prostate,) = recipe("prostate-mri").rows
    assert prostate.values == {m: study["MRI"][m]["prostate"] for m in study["MRI"]}
    slices = {(r.structure, m): v for r in recipe("flare22-slices").rows for m, v in r.values.items()}
    flare = published["flare22_slices_accuracy"]["methods"]
    assert slices == {(ALL if s == "average" else s, m): v for m, table in flare.items() for s, v in table.items()}
    for name, table, columns in (("gmiseg-table2", "gmiseg_table2", 3), ("cotraining", "cotraining_table1", 6)):
        ours = sorted(v for r in recipe(name).rows for v in r.values.values())
        rows = [values for group in published[table]["rows"].values() for values in group.values()]
        assert all(len(values) == columns for values in rows)
        assert ours == sorted(v for values in rows for v in values)


def test_a_figure_agrees_where_it_lies_in_our_interval() -> None:
    assert Line.beside(PLACE, 0.77, row(0.75, (0.7, 0.8)), 1).status == "agrees"
    assert Line.beside(PLACE, 0.81, row(0.75, (0.7, 0.8)), 1).status == "differs"
    assert Line.beside(PLACE, 0.75, row(0.75, None), 1).status == "no interval"
    percent = Line.beside(PLACE, 77.0, row(0.75, (0.7, 0.8)), 100)
    assert percent.status == "agrees"
    assert percent.ours == pytest.approx(75)
    assert percent.interval == pytest.approx((70, 80))


def test_nothing_given_is_a_list_of_what_is_missing(tmp_path: Path) -> None:
    outcome = call("reproduce", "prostate-mri", "--out", tmp_path / "receipt")
    assert outcome.code == 1
    assert "missing: data of MRI" in outcome.out
    receipt = json.loads((tmp_path / "receipt" / "receipt.json").read_text(encoding="utf-8"))
    assert not receipt["complete"]
    assert all(line["ours"] is None and line["status"] == "missing" for line in receipt["lines"])
    assert [line["published"] for line in receipt["lines"]] == [0.382, 0.768, 0.797]


def test_scores_stand_beside_the_published_ones(prepared: Path, base: Path, tmp_path: Path) -> None:
    outcome = call("reproduce", "prostate-mri", "--data", prepared, "--weights", base, "--out", tmp_path / "r")
    assert outcome.code == 1, outcome.err
    receipt = json.loads((tmp_path / "r" / "receipt.json").read_text(encoding="utf-8"))
    lines = {line["method"]: line for line in receipt["lines"]}
    scores = [r.dice for r in read_results(tmp_path / "r" / "results.jsonl")]
    assert len(scores) == 3
    assert lines["SegVol"]["ours"] == pytest.approx(sum(scores) / 3)
    assert lines["SegVol"]["status"] in ("agrees", "differs")
    low, high = lines["SegVol"]["interval"]
    assert low <= lines["SegVol"]["ours"] <= high
    assert lines["SegVol"]["published"] == 0.382
    assert lines["LoRA"]["status"] == "missing"
    assert lines["LoRA"]["reason"].startswith("weights of LoRA")
    assert receipt["data"][0]["test_cases"] == 3
    assert receipt["code_sha256"] == code_fingerprint()
    again = call("reproduce", "prostate-mri", "--out", tmp_path / "r")
    assert again.code == 2
    assert "holds another receipt" in again.err


def test_a_table_that_is_complete_ends_well(prepared: Path, base: Path) -> None:
    """The same file in all rows: what it is was said by the user, so no row is missing."""
    options = [part for name in recipe("prostate-mri").ours for part in ("--weights", f"{name}={base}")]
    outcome = call("reproduce", "prostate-mri", "--data", f"MRI={prepared}", *options)
    assert outcome.code == 0, outcome.err
    assert "missing" not in outcome.out


def test_structures_that_data_lack_are_named(prepared: Path, base: Path, tmp_path: Path) -> None:
    outcome = call("reproduce", "ct-mri-400", "--data", prepared, "--weights", base, "--out", tmp_path / "r")
    assert outcome.code == 1
    receipt = json.loads((tmp_path / "r" / "receipt.json").read_text(encoding="utf-8"))
    lines = {(line["group"], line["structure"]): line for line in receipt["lines"] if line["method"] == "SegVol"}
    assert lines["MRI", "prostate"]["ours"] is not None
    assert lines["MRI", "postcava"]["reason"] == "data of MRI in which inferior vena cava is annotated"
    assert lines["CT", "colon cancer"]["reason"].startswith("data of CT")
    assert lines["CT", "liver"]["reason"].startswith("data of CT")
    assert lines["CT + MRI", ALL]["ours"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "choose from"),
        (["prostate-mri", "--data", "CT=somewhere"], "has data of MRI"),
        (["prostate-mri", "--weights", "mine=small"], "no row of prostate-mri"),
        (["prostate-mri", "--weights", "=small"], "NAME=PATH"),
        (["prostate-mri", "--data", "nowhere"], "no prepared data set"),
    ],
)
def test_bad_requests_get_one_sentence(arguments: list[str], words: str) -> None:
    outcome = call("reproduce", *arguments)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.count("\n") == 1


def test_changed_files_are_refused(prepared: Path, base: Path) -> None:
    image = next((prepared / "cases").glob("*/image.npy"))
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    outcome = call("reproduce", "prostate-mri", "--data", prepared, "--weights", base)
    assert outcome.code == 2
    assert "SHA-256 differs" in outcome.err


def test_a_group_that_the_cases_are_not_of_is_refused(prepared: Path, base: Path) -> None:
    outcome = call("reproduce", "ct-mri-400", "--data", f"CT={prepared}", "--weights", base)
    assert outcome.code == 2
    assert "not CT; leave out 'CT='" in outcome.err


def test_a_patient_on_both_sides_is_refused(prepared: Path, base: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    for case in manifest["cases"]:
        case["patient"] = "one"
    (prepared / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    outcome = call("reproduce", "prostate-mri", "--data", prepared, "--weights", base)
    assert outcome.code == 2
    assert "among the test and the training cases" in outcome.err


def test_models_find_their_row(tiny_base: SegVol, base: Path, tmp_path: Path) -> None:
    assert kind_of(str(base), load_model(str(base))) == "base"
    priors = AdapterConfig(layers=[], priors=PriorsConfig(blocks=1, modality_tokens=2))
    whole = one_kind("lora").model_copy(update={"train": ["mask_decoder.*"]})
    kinds = (("lora", one_kind("lora")), ("priors", priors), ("other", one_kind("med_sa")), ("other", whole))
    for number, (kind, config) in enumerate(kinds):
        path = tmp_path / f"{number}.safetensors"
        torch.manual_seed(0)
        save_adapter(path, adapted(tiny_base, config), str(base), {})
        assert kind_of(str(path), load_model(str(path))) == kind


def test_what_a_source_misprints_is_not_compared(tmp_path: Path) -> None:
    found = recipe("cotraining")
    assert "nsd_1px" in found.not_comparable
    assert {row.measure for row in found.rows} == {"jaccard", "dice", "nsd_1px"}


def test_fingerprints_do_not_depend_on_order() -> None:
    assert fingerprint(["b", "a"]) == fingerprint(["a", "b"]) != fingerprint(["a", "c"])


def test_the_list_says_what_each_needs() -> None:
    outcome = call("reproduce", "list")
    assert outcome.code == 0
    for name in recipe_names():
        assert f"{name}: " in outcome.out
    assert "adaptmedseg weights convert segvol" in outcome.out


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """Pictures of a disc and a square: 14 to draw supports from, 6 to test on."""
    raw, out = blob_folder(tmp_path / "raw", 20), tmp_path / "slices"
    labels = ["--label", "1=disc", "--label", "2=square"]
    outcome = call("slices", raw, "--out", out, *labels, "--val-fraction", "0", "--test-fraction", "0.3")
    assert outcome.code == 0, outcome.err
    return out


@pytest.fixture
def sam(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "sam.safetensors"
    save_sam(path, Sam(TINY_SAM), {"name": "tiny SAM"})
    return path


def test_support_sets_stand_beside_the_published_table(blobs: Path, sam: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    outcome = call("reproduce", "gmiseg-table2", "--data", f"STARE={blobs}", "--weights", sam, "--out", out)
    assert outcome.code == 1, outcome.err  # the other sets are missing
    receipt = json.loads((out / "receipt.json").read_text(encoding="utf-8"))
    lines = {(line["group"], line["measure"], line["method"]): line for line in receipt["lines"]}
    ours = lines["STARE", "dice", "GMISeg"]
    records = read_results(out / "results.jsonl")
    assert {record.structure for record in records} == {"disc", "square"}
    assert {record.prompt_origin for record in records} == {ours["prompt_origin"]}
    assert "14" in ours["prompt_origin"]
    assert ours["published"] == 77.6
    scores = [record.dice for record in records if record.dice is not None]
    assert ours["ours"] == pytest.approx(100 * sum(scores) / len(scores))
    assert lines["STARE", "asd_mm", "GMISeg"]["reason"].endswith("no case has a value of asd_mm")
    assert lines["ACDC", "dice", "GMISeg"]["reason"].startswith("data of ACDC")
    assert lines["STARE", "dice", "UniverSeg"]["status"] == "not ours"


@pytest.mark.parametrize("kind", ["volumes", "slices", "a copy under another name"])
def test_a_set_given_twice_is_refused(prepared: Path, blobs: Path, base: Path, sam: Path, kind: str) -> None:
    first = second = prepared if kind == "volumes" else blobs
    if kind.startswith("a copy"):
        second = first.with_name("copy")
        shutil.copytree(first, second)
        manifest = json.loads((second / "manifest.json").read_text(encoding="utf-8"))
        (second / "manifest.json").write_text(json.dumps(manifest | {"name": "other"}), encoding="utf-8")
    name, group, model = ("prostate-mri", "MRI", base) if kind == "volumes" else ("gmiseg-table2", "STARE", sam)
    outcome = call(
        "reproduce", name, "--data", f"{group}={first}", "--data", f"{group}={second}", "--weights", f"{model}"
    )
    assert outcome.code == 2
    assert f"--data {second}: has test cases of '{first.name}', which was given as {group} already" in outcome.err
    assert outcome.err.count("\n") == 1


def test_receipts_of_slices_say_how_the_model_was_trained(blobs: Path, sam: Path, tmp_path: Path) -> None:
    trained = call("train", "2d/qv_lora", "--data", blobs, "--base", sam, "--out", tmp_path / "run", "--device", "cpu",
                   "--seed", "7", "budget.minutes=null", "budget.steps=1", "precision=fp32")  # fmt: skip
    assert trained.code == 0, trained.err
    facts = [SliceEvaluator().model(str(path), None).facts for path in (tmp_path / "run", sam)]
    assert [(f.seed, f.steps) for f in facts] == [(7, 1), (None, None)]


def test_rows_may_be_named_with_a_sign_of_equality(blobs: Path, sam: Path) -> None:
    outcome = call("reproduce", "flare22-slices", "--data", f"FLARE22={blobs}", "--weights", f"SAM LoRA r=4={sam}")
    assert outcome.code == 1, outcome.err
    assert "- SAM LoRA r=4: " in outcome.out.partition("Models:")[2]
    missing = outcome.out.partition("Missing:")[2]
    assert "weights of SAM LoRA r=8" in missing
    assert "weights of SAM LoRA r=4" not in missing


def test_slices_are_asked_by_boxes_where_a_model_has_no_classes(blobs: Path, sam: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    outcome = call("reproduce", "flare22-slices", "--data", blobs, "--weights", f"SAM zero-shot={sam}", "--out", out)
    assert outcome.code == 1
    lines = json.loads((out / "receipt.json").read_text(encoding="utf-8"))["lines"]
    reasons = {line["reason"] for line in lines}
    overall = [line for line in lines if line["structure"] == ALL]
    assert {(line["status"], line["ours"]) for line in overall} == {
        ("not comparable", None)
    }  # an average with background
    assert "data of FLARE22 in which liver is annotated" in reasons
    background = {line["method"]: line["status"] for line in lines if line["structure"] == "background"}
    assert background.pop("SAM zero-shot") == "not given"  # of a model without classes: nothing to be had is missing
    assert set(background.values()) == {"missing"}
    receipt = (out / "receipt.md").read_text(encoding="utf-8")
    assert "not given by this model: it was asked for structures one by one" in receipt
    outcome = call("reproduce", "cotraining", "--data", blobs, "--weights", f"MedSAM={sam}")
    assert outcome.code == 2
    assert "say which data it is" in outcome.err
    outcome = call("reproduce", "gmiseg-table2", "--data", f"STARE={blobs}", "--weights", sam, "--base", "small")
    assert outcome.code == 2
    assert "is for models of volumes" in outcome.err
