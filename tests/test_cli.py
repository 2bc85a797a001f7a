"""The command line from files to a report, and every kind of bad input told in one sentence."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
import yaml
from conftest import TINY
from small_cases import AFFINE, MODALITY, SHAPE, Outcome, call, save, small_folder, small_image, small_labels

from adaptmedseg.checkpoints.store import save_base
from adaptmedseg.data.volume import read_grid
from adaptmedseg.models.segvol import SegVol

LABELS = ["--label", "1=prostate", "--label", "2=bladder"]
DESCRIBED = ["--modality", MODALITY, *LABELS]
CONFIG = {
    "name": "tiny",
    "budget": {"steps": 3},
    "precision": "fp32",
    "validations": 1,
    "adapter": {
        "layers": [{"rank": 2, "targets": ["image_encoder.blocks.*"]}],
        "priors": {"blocks": 1, "modality_tokens": 2},
    },
}


@dataclass(frozen=True)
class Place:
    """A finished chain: source files, prepared sets, a base and three runs."""

    root: Path

    def __truediv__(self, name: str) -> Path:
        return self.root / name


def succeed(*arguments: str | Path) -> Outcome:
    outcome = call(*arguments)
    assert outcome.code == 0, outcome
    assert "error" not in outcome.err
    return outcome


def write_base(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_base(path, SegVol(TINY), {"name": "tiny", "licence": "Apache-2.0"})
    return path


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Prepare and train once for all tests of this file; they only read it."""
    root = tmp_path_factory.mktemp("chain")
    small_folder(root / "source", 6)
    base = write_base(root / "base.safetensors")
    config = root / "tiny.yaml"
    config.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    succeed("prepare", root / "source", "--out", root / "prepared", "--name", "small", *DESCRIBED)
    succeed("prepare", root / "source", "--out", root / "folds", "--name", "folded", *DESCRIBED, "--folds", "3")
    train = ["train", config, "--data", root / "prepared", "--device", "cpu"]
    succeed(*train, "--out", root / "adapter", "--base", base)
    succeed(*train, "--out", root / "whole", "--base", base, "adapter=null", "validations=0")
    succeed(*train, "--out", root / "unet", "adapter=null", "model=unet", "batch_size=1", "budget.steps=1")
    return Place(root)


# The chain ------------------------------------------------------------------------------


def test_prepare_and_check_agree(place: Place, tmp_path: Path) -> None:
    outcome = succeed("check", place / "source", *DESCRIBED)
    assert "case_0" in outcome.out
    assert "6 cases, 0 of them bad" in outcome.out
    outcome = succeed("prepare", place / "source", "--out", tmp_path / "new", *DESCRIBED)
    assert "6 cases (4 train, 1 val, 1 test); structures: prostate, bladder" in outcome.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new"]


def test_a_run_holds_model_configuration_and_history(place: Place) -> None:
    for name in ("adapter", "whole", "unet"):
        files = {path.name for path in (place / name).iterdir()}
        assert files == {"model.safetensors", "config.yaml", "history.json", "logs"}
    history = json.loads((place / "adapter" / "history.json").read_text(encoding="utf-8"))
    assert history["summary"]["steps"] == 3
    assert len(history["summary"]["image_sha256"]) == 4
    assert 0 <= history["rows"][-1]["val_dice"] <= 1
    assert yaml.safe_load((place / "adapter" / "config.yaml").read_text(encoding="utf-8"))["base"] == str(
        place / "base.safetensors"
    )


def test_a_run_folder_serves_as_base(place: Place, tmp_path: Path) -> None:
    data = ["--data", place / "prepared", "--device", "cpu"]
    run = tmp_path / "second"
    succeed("train", place / "tiny.yaml", *data, "--base", place / "whole", "--out", run, "budget.steps=1")
    outcome = succeed("evaluate", "--model", f"second={run}", *data, "--out", tmp_path / "eval")
    assert "second: mean Dice" in outcome.out
    notes = json.loads((tmp_path / "eval" / "study.json").read_text(encoding="utf-8"))
    assert notes["methods"]["second"] == "adapter tiny on tiny"


def test_evaluate_and_report(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    models = ["--model", f"base={place / 'base.safetensors'}", "--model", f"adapted={place / 'adapter'}"]
    evaluate = ["evaluate", "--data", place / "prepared", "--out", out, "--device", "cpu"]
    outcome = succeed(*evaluate, *models)
    assert outcome.out.count("mean Dice") == 2
    first = (out / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(first) == 4  # two methods, one case, two structures
    refused = call(*evaluate, *models)
    assert (refused.code, (out / "results.jsonl").read_text(encoding="utf-8").splitlines()) == (2, first)
    assert "--append" in refused.err
    succeed(*evaluate, "--model", f"unet={place / 'unet'}", "--append")
    succeed(*evaluate, *models, "--append")  # a score that is there already is replaced, not doubled
    methods = [json.loads(line)["method"] for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(methods) == ["adapted", "adapted", "base", "base", "unet", "unet"]
    outcome = succeed("report", out, "--base", "base", "--adapted", "adapted", "--run", f"adapted={place / 'adapter'}")
    assert outcome.out.strip() == str(out / "report.html")
    text = (out / "report.md").read_text(encoding="utf-8")
    assert all(word in text for word in ("base", "adapted", "unet", "tiny.yaml"[:4]))
    assert (out / "results.csv").read_text(encoding="utf-8").count("\n") == 7
    assert not list(out.rglob("*.partial"))


def test_folds_collect_in_one_study(place: Place, tmp_path: Path) -> None:
    model: list[str | Path] = [
        "--model",
        f"base={place / 'base.safetensors'}",
        "--data",
        place / "folds",
        "--device",
        "cpu",
    ]
    model += ["--structures", "urinary bladder", "--append"]
    for fold in range(3):
        succeed("evaluate", *model, "--out", tmp_path / "eval", "--fold", str(fold))
    lines = [
        json.loads(line) for line in (tmp_path / "eval" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len({line["case"] for line in lines}) == len(lines) == 6
    assert {line["fold"] for line in lines} == {0, 1, 2}
    assert {line["structure"] for line in lines} == {"bladder"}


def test_an_oracle_box_is_marked_as_one(place: Place, tmp_path: Path) -> None:
    succeed("evaluate", "--model", f"base={place / 'base.safetensors'}", "--data", place / "prepared",
            "--out", tmp_path / "eval", "--ask", "oracle box", "--device", "cpu")  # fmt: skip
    lines = [
        json.loads(line) for line in (tmp_path / "eval" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {line["prompt_origin"] for line in lines} == {"text + oracle box"}


def predict(place: Place, image: Path, out: Path, *more: str) -> Outcome:
    return call("predict", image, "--out", out, "--modality", MODALITY, "--structures", "prostate,bladder",
                "--model", place / "adapter", "--device", "cpu", *more)  # fmt: skip


def test_predict_a_file(place: Place, tmp_path: Path) -> None:
    image = place / "source" / "images" / "case_0.nii.gz"
    outcome = predict(place, image, tmp_path / "masks")
    assert outcome.code == 0, outcome
    mask = tmp_path / "masks" / "case_0.nii.gz"
    assert outcome.out.strip() == str(mask)
    assert sorted(p.name for p in mask.parent.iterdir()) == ["case_0.json", "case_0.nii.gz"]
    np.testing.assert_allclose(read_grid(mask).affine, read_grid(image).affine, atol=1e-6)
    assert read_grid(mask).shape == SHAPE
    values = np.asarray(nib.load(mask).dataobj)
    note = json.loads(mask.with_name("case_0.json").read_text(encoding="utf-8"))
    assert note["labels"] == {"1": "prostate", "2": "bladder"}
    assert note["hashes"].keys() == {"base weights", "adapter file"}
    assert set(np.unique(values)) <= {0, 1, 2}
    voxel_ml = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    # Bladder wins where both are, so only its volume can be read off the label map.
    assert note["volume_ml"]["bladder"] == pytest.approx((values == 2).sum() * voxel_ml, rel=0.02)


def test_predict_reads_channels_and_other_formats(place: Place, tmp_path: Path) -> None:
    flat = place / "source" / "images" / "case_0.nii.gz"
    stacked = save(tmp_path / "stacked.nii.gz", np.stack([small_image(1), small_image(0)], axis=-1))
    itk = SimpleITK.ReadImage(str(flat))
    SimpleITK.WriteImage(itk, str(tmp_path / "case.mha"))
    for image, more in ((flat, []), (stacked, ["--channel", "1"]), (tmp_path / "case.mha", [])):
        assert predict(place, image, tmp_path / "masks", *more).code == 0
    names = ("case_0", "stacked", "case")
    masks = [nib.load(tmp_path / "masks" / f"{name}.nii.gz") for name in names]
    for mask in masks:
        np.testing.assert_allclose(mask.affine, masks[0].affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(masks[0].dataobj))


def test_a_structure_of_ones_own_goes_the_whole_way(place: Place, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    succeed("prepare", place / "source", "--out", data, "--modality", MODALITY, "--label", "1=my lesion", "--label",
            "2=background", "--new-structure", "my lesion")  # fmt: skip
    succeed("train", place / "tiny.yaml", "--data", data, "--base", place / "base.safetensors", "--out", run,
            "budget.steps=1", "--device", "cpu")  # fmt: skip
    evaluated = succeed("evaluate", "--model", f"m={run}", "--data", data, "--out", tmp_path / "e", "--structures",
                        "My lesion", "--device", "cpu")  # fmt: skip
    assert "over 1 cases" in evaluated.out
    image = place / "source" / "images" / "case_0.nii.gz"
    succeed("predict", image, "--out", tmp_path / "m", "--modality", "T2", "--structures", "my lesion", "--model", run)


def test_predict_leaves_a_broken_case_out_and_goes_on(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    for seed in (0, 1, 2):
        save(folder / f"scan_{seed}.nii.gz", small_image(seed))
    broken = folder / "scan_1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:500])
    outcome = predict(place, folder, tmp_path / "masks")
    assert outcome.code == 1
    assert outcome.err.count("left out: ") == 1
    assert str(broken) in outcome.err.replace("\n", "")
    assert "2 of 3 images segmented, 1 left out" in outcome.err
    written = sorted(p.name for p in (tmp_path / "masks").iterdir())
    assert written == ["scan_0.json", "scan_0.nii.gz", "scan_2.json", "scan_2.nii.gz"]


def test_predict_again_needs_overwrite(place: Place, tmp_path: Path) -> None:
    image = place / "source" / "images" / "case_0.nii.gz"
    assert predict(place, image, tmp_path).code == 0
    before = (tmp_path / "case_0.nii.gz").read_bytes()
    refused = predict(place, image, tmp_path)
    assert_told(refused, "case_0.nii.gz", "--overwrite")
    assert predict(place, image, tmp_path, "--overwrite").code == 0
    assert (tmp_path / "case_0.nii.gz").read_bytes() == before


def test_a_mask_never_replaces_its_image(place: Place, tmp_path: Path) -> None:
    image = save(tmp_path / "scan.nii.gz", small_image(0))
    before = image.read_bytes()
    assert_told(predict(place, image, tmp_path, "--overwrite"), "scan.nii.gz", "image itself", "--out")
    assert image.read_bytes() == before


def test_an_adapter_whose_base_moved_asks_for_it(place: Place, tmp_path: Path) -> None:
    config = tmp_path / "moved.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "budget": {"steps": 1}}), encoding="utf-8")
    base = write_base(tmp_path / "before.safetensors")
    succeed("train", config, "--data", place / "prepared", "--base", base, "--out", tmp_path / "run", "--device", "cpu")
    base.rename(tmp_path / "after.safetensors")
    image = place / "source" / "images" / "case_0.nii.gz"
    ask = ["predict", image, "--out", tmp_path / "m", "--modality", "T2", "--structures", "prostate", "--device", "cpu",
           "--model", tmp_path / "run"]  # fmt: skip
    assert_told(call(*ask), "before.safetensors", "--base")
    succeed(*ask, "--base", tmp_path / "after.safetensors")


# Bad input ------------------------------------------------------------------------------


def assert_told(outcome: Outcome, *words: str) -> None:
    """Exit code 2, and on standard error one sentence that holds these words; notes and progress may precede it."""
    assert outcome.code == 2, outcome
    *before, sentence = outcome.err.splitlines()
    assert sentence.startswith("error: "), outcome.err
    assert all(line.startswith(("note: ", "training ")) for line in before), outcome.err
    for word in words:
        assert word in sentence, outcome.err


def assert_left_out(outcome: Outcome, *words: str) -> None:
    """Exit code 1, the other cases prepared, and a line on the one that was left out."""
    assert outcome.code == 1, outcome
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("left out: "))
    for word in words:
        assert word in line, outcome.err
    assert "3 cases" in outcome.out


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nan_image(path: Path) -> None:
    image = small_image(0).astype(np.float32)
    image[3, 4, 5] = np.nan
    save(path, image)


BROKEN_IMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing": (lambda path: path.unlink(), ("does not exist",)),
    "truncated": (truncate, ("truncated or damaged", "again")),
    "4D": (lambda path: save(path, np.stack([small_image(0)] * 2, axis=-1)), ("2 channels", "--channel N")),
    "NaN": (nan_image, ("1 voxels that are NaN", "replace")),
    "constant": (lambda path: save(path, np.full(SHAPE, 7, np.int16)), ("constant", "7")),
    "a mask": (lambda path: save(path, small_labels(0) // 2), ("no contrast", "as in a mask")),
    "2D": (lambda path: save(path, small_image(0)[:, :, 0]), ("2D", "three axes")),
    "no volume": (lambda path: path.write_text("hello", encoding="utf-8"), ("damaged",)),
}


@pytest.mark.parametrize("kind", BROKEN_IMAGES)
def test_predict_refuses_a_broken_image(place: Place, tmp_path: Path, kind: str) -> None:
    image = save(tmp_path / "scan.nii.gz", small_image(0))
    spoil, words = BROKEN_IMAGES[kind]
    spoil(image)
    assert_told(predict(place, image, tmp_path / "masks"), str(image), *words)
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("kind", BROKEN_IMAGES)
def test_prepare_leaves_a_broken_image_out_and_check_tells_of_it(tmp_path: Path, kind: str) -> None:
    source = small_folder(tmp_path / "source", 4)
    image = source / "images" / "case_1.nii.gz"
    spoil, words = BROKEN_IMAGES[kind]
    spoil(image)
    words = ("labels/case_1.nii.gz", "has no image") if kind == "missing" else (str(image), *words)
    assert_left_out(call("prepare", source, "--out", tmp_path / "out", *DESCRIBED), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]
    checked = call("check", source, *DESCRIBED)
    assert checked.code == 1
    assert "1 errors" in checked.out
    assert all(word in checked.out.replace("\n", "") for word in words)


def other_shape(path: Path) -> None:
    save(path, small_labels(1)[:-1])


def other_affine(path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 5
    save(path, small_labels(1), moved)


BROKEN_LABELS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "shape": (other_shape, ("has shape (23, 20, 8)", "resample")),
    "affine": (other_affine, ("5.00 mm away", "header")),
    "value": (lambda path: save(path, small_labels(1) * 3), ("label values [3, 6]", "--label 3=NAME")),
    "empty": (lambda path: save(path, np.zeros(SHAPE, np.uint8)), ("is empty", "--absent empty")),
    "fractions": (lambda path: save(path, small_labels(1) * np.float32(0.5)), ("not integers", "hard labels")),
    "truncated": (truncate, ("truncated or damaged",)),
}


@pytest.mark.parametrize("kind", BROKEN_LABELS)
def test_prepare_leaves_broken_labels_out(tmp_path: Path, kind: str) -> None:
    source = small_folder(tmp_path / "source", 4)
    label = source / "labels" / "case_1.nii.gz"
    spoil, words = BROKEN_LABELS[kind]
    spoil(label)
    assert_left_out(call("prepare", source, "--out", tmp_path / "out", *DESCRIBED), str(label), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]
    assert call("check", source, *DESCRIBED).code == 1


def empty_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class Bad:
    """A call that must be refused: its arguments, given the chain's folder and a folder for output, and the words."""

    arguments: Callable[[Place, Path], list[str | Path]]
    words: tuple[str, ...]


PREPARE = {
    "missing source": Bad(lambda p, t: [t / "nowhere", *DESCRIBED], ("nowhere", "does not exist")),
    "empty folder": Bad(lambda p, t: [empty_folder(t / "empty"), *DESCRIBED], ("holds no volumes",)),
    "no labels": Bad(lambda p, t: [p / "source", "--modality", MODALITY], ("No label is named", "--label")),
    "no modality": Bad(lambda p, t: [p / "source", *LABELS], ("modality is not known", "--modality")),
    "unknown modality": Bad(lambda p, t: [p / "source", "--modality", "T7", *LABELS], ("'T7'", "choose one of")),
    "unknown structure": Bad(
        lambda p, t: [p / "source", "--modality", MODALITY, "--label", "1=prostrate"], ("'prostrate'", "prostate")
    ),
    "label without a name": Bad(
        lambda p, t: [p / "source", "--modality", MODALITY, "--label", "prostate"], ("--label prostate", "NAME=VALUE")
    ),
    "label twice": Bad(
        lambda p, t: [p / "source", *DESCRIBED, "--label", "1=liver"], ("--label 1=liver", "given twice")
    ),
    "absent": Bad(lambda p, t: [p / "source", *DESCRIBED, "--absent", "never"], ("'never'", "unannotated")),
    "fractions": Bad(lambda p, t: [p / "source", *DESCRIBED, "--test-fraction", "0.95"], ("0.95", "below 1")),
    "folds": Bad(lambda p, t: [p / "source", *DESCRIBED, "--folds", "9"], ("9 folds of 6 patients", "2 to 6")),
}


@pytest.mark.parametrize("kind", PREPARE)
def test_prepare_refuses(place: Place, tmp_path: Path, kind: str) -> None:
    bad = PREPARE[kind]
    assert_told(call("prepare", *bad.arguments(place, tmp_path), "--out", tmp_path / "out"), *bad.words)
    assert not [path for path in tmp_path.iterdir() if path.name != "empty"]


@pytest.mark.parametrize("kind", ["missing source", "empty folder", "unknown modality", "unknown structure"])
def test_check_refuses(place: Place, tmp_path: Path, kind: str) -> None:
    assert_told(call("check", *PREPARE[kind].arguments(place, tmp_path)), *PREPARE[kind].words)


def training(*more: str | Path) -> Callable[[Place, Path], list[str | Path]]:
    return lambda p, t: [p / "tiny.yaml", "--data", p / "prepared", "--base", p / "base.safetensors", *more]


def spoiled_adapter(place: Place, folder: Path) -> Path:
    shutil.copytree(place / "adapter", folder / "spoiled")
    truncate(folder / "spoiled" / "model.safetensors")
    return folder / "spoiled"


TRAIN = {
    "configuration": Bad(lambda p, t: ["adap"], ("configuration 'adap'", "shipped are adapt")),
    "configuration file": Bad(lambda p, t: [t / "none.yaml"], ("none.yaml", "no such configuration file")),
    "key": Bad(training("optimiser.speed=1"), ("tiny.yaml", "optimiser.speed", "no such key")),
    "value": Bad(training("budget.steps=-3"), ("tiny.yaml", "budget.steps", "-3")),
    "both budgets": Bad(training("budget.minutes=3"), ("tiny.yaml", "budget", "either steps or minutes")),
    "override": Bad(training("budget.steps"), ("'budget.steps'", "key=value")),
    "no data": Bad(lambda p, t: [p / "tiny.yaml", "--base", p / "base.safetensors"], ("no training data", "--data")),
    "not prepared": Bad(lambda p, t: [p / "tiny.yaml", "--data", p / "source"], ("source", "no prepared data set")),
    "unknown base": Bad(
        lambda p, t: [p / "tiny.yaml", "--data", p / "prepared", "--base", "smal"], ("base 'smal'", "small")
    ),
    "adapter as base": Bad(
        lambda p, t: [p / "tiny.yaml", "--data", p / "prepared", "--base", p / "adapter"], ("adapter", "expected")
    ),
    "fold": Bad(training("--fold", "1"), ("no folds", "--folds")),
    "structure": Bad(training("data.structures=[liver]"), ("'liver'", "prostate")),
    "device": Bad(training("--device", "tpu"), ("--device tpu", "cpu")),
}


@pytest.mark.parametrize("kind", TRAIN)
def test_train_refuses(place: Place, tmp_path: Path, kind: str) -> None:
    bad = TRAIN[kind]
    assert_told(call("train", *bad.arguments(place, tmp_path), "--out", tmp_path / "run"), *bad.words)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused(place: Place, tmp_path: Path) -> None:
    outcome = call("train", *training()(place, tmp_path), "--out", tmp_path / "run", "--device", "cuda")
    assert_told(outcome, "--device cuda", "not available", "cpu")
    assert_told(predict(place, place / "source", tmp_path / "masks", "--device", "cuda:1"), "holds no image")
    image = place / "source" / "images"
    assert_told(predict(place, image, tmp_path / "masks", "--device", "cuda:1"), "--device cuda:1")
    assert not list(tmp_path.iterdir())


def scoring(model: str = "base.safetensors", *more: str | Path) -> Callable[[Place, Path], list[str | Path]]:
    return lambda p, t: ["--model", f"m={p / model}", "--data", p / "prepared", *more]


EVALUATE = {
    "model missing": Bad(scoring("nothing.safetensors"), ("nothing.safetensors", "no such model file")),
    "model damaged": Bad(
        lambda p, t: ["--model", f"m={spoiled_adapter(p, t)}", "--data", p / "prepared"],
        ("spoiled", "not a readable safetensors file"),
    ),
    "model without name": Bad(
        lambda p, t: ["--model", "small", "--data", p / "prepared"], ("--model small", "NAME=VALUE")
    ),
    "model twice": Bad(scoring("adapter", "--model", "m=small"), ("--model m=small", "given twice")),
    "wrong base": Bad(
        lambda p, t: scoring("adapter", "--base", write_base(t / "other.safetensors", 9))(p, t),
        ("adapter", "hash", "--base"),
    ),
    "leak of a fold": Bad(
        lambda p, t: ["--model", f"m={p / 'adapter'}", "--data", p / "folds", "--fold", "0"],
        ("folded/case_", "'m' was trained on this image", "--fold"),
    ),
    "leak into a base": Bad(
        lambda p, t: ["--model", f"m={p / 'whole'}", "--data", p / "folds", "--fold", "0"],
        ("'m' was trained on this image",),
    ),
    "training split": Bad(scoring("adapter", "--split", "train"), ("--split train", "test or val")),
    "no fold": Bad(scoring("adapter", "--fold", "0"), ("no folds", "--folds")),
    "unknown structure": Bad(scoring("adapter", "--structures", "prostrate"), ("'prostrate'", "prostate")),
    "structure not held": Bad(scoring("adapter", "--structures", "liver"), ("'liver'", "prostate")),
    "ask": Bad(scoring("adapter", "--ask", "nicely"), ("--ask nicely", "oracle box")),
    "not prepared": Bad(
        lambda p, t: ["--model", f"m={p / 'adapter'}", "--data", p / "source"], ("no prepared data set",)
    ),
    "data twice": Bad(
        lambda p, t: scoring("adapter", "--data", p / "prepared")(p, t), ("two data sets", "'small'", "--name")
    ),
}


@pytest.mark.parametrize("kind", EVALUATE)
def test_evaluate_refuses(place: Place, tmp_path: Path, kind: str) -> None:
    bad = EVALUATE[kind]
    arguments = bad.arguments(place, tmp_path)
    assert_told(call("evaluate", *arguments, "--out", tmp_path / "eval", "--device", "cpu"), *bad.words)
    assert not (tmp_path / "eval").exists()


def test_a_unet_is_not_asked_for_what_it_cannot_know(place: Place, tmp_path: Path) -> None:
    succeed("prepare", place / "source", "--out", tmp_path / "livers", "--modality", MODALITY, "--label", "1+2=liver")
    outcome = call("evaluate", "--model", f"u={place / 'unet'}", "--data", tmp_path / "livers", "--out", tmp_path / "e")
    assert_told(outcome, "model 'u'", "prostate")


PREDICT = {
    "modality": Bad(lambda p, t: ["--modality", "T7", "--structures", "prostate"], ("'T7'", "choose one of")),
    "structure": Bad(lambda p, t: ["--modality", "CT", "--structures", "prostrate"], ("'prostrate'", "prostate")),
    "not trained on": Bad(lambda p, t: ["--modality", "CT", "--structures", "liver"], ("'liver'", "it knows")),
    "no structure": Bad(lambda p, t: ["--modality", "CT", "--structures", ","], ("no structure named", "prostate")),
    "twice": Bad(lambda p, t: ["--modality", "CT", "--structures", "bladder,urinary bladder"], ("named twice",)),
    "channel": Bad(
        lambda p, t: ["--modality", "CT", "--structures", "prostate", "--channel", "3"], ("no channel 3", "case_0")
    ),
}


@pytest.mark.parametrize("kind", PREDICT)
def test_predict_refuses(place: Place, tmp_path: Path, kind: str) -> None:
    bad = PREDICT[kind]
    image = place / "source" / "images" / "case_0.nii.gz"
    more = ["--out", tmp_path / "masks", "--model", place / "adapter", "--device", "cpu"]
    assert_told(call("predict", image, *bad.arguments(place, tmp_path), *more), *bad.words)
    assert not list(tmp_path.iterdir())


def test_predict_refuses_folders_it_cannot_serve(place: Place, tmp_path: Path) -> None:
    assert_told(predict(place, empty_folder(tmp_path / "empty"), tmp_path / "m"), "empty", "holds no image", ".nii.gz")
    save(tmp_path / "twins" / "a.nii.gz", small_image(0))
    save(tmp_path / "twins" / "a.nii", small_image(1))
    assert_told(predict(place, tmp_path / "twins", tmp_path / "m"), "two images are called 'a'", "rename")
    assert not (tmp_path / "m").exists()


def test_report_refuses(place: Place, tmp_path: Path) -> None:
    assert_told(call("report", tmp_path / "none"), "none", "run the evaluation first")
    succeed("evaluate", *scoring()(place, tmp_path), "--out", tmp_path / "eval", "--device", "cpu")
    before = sorted(tmp_path.rglob("*"))
    assert_told(call("report", tmp_path / "eval", "--adapted", "x"), "no scores of 'x'", "its methods are m")
    assert_told(call("report", tmp_path / "eval", "--run", f"a={tmp_path}"), "history.json", "finished training")
    assert_told(call("report", tmp_path / "eval", "--run", "a"), "--run a", "NAME=VALUE")
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "eval" / "results.jsonl").write_text('{"method": "m"}\n', encoding="utf-8")
    assert_told(call("report", tmp_path / "eval"), "results.jsonl, line 1", "run the evaluation again")


def test_an_output_folder_in_use_is_left_as_it_is(place: Place, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    commands: list[list[str | Path]] = [
        ["prepare", place / "source", *DESCRIBED],
        ["train", *training()(place, tmp_path), "--device", "cpu"],
        ["demo", "--model", place / "base.safetensors"],
    ]
    for command in commands:
        assert_told(call(*command, "--out", tmp_path / "used"), "used", "choose a new")
    image = place / "source" / "images" / "case_0.nii.gz"
    commands += [
        ["evaluate", *scoring()(place, tmp_path), "--device", "cpu"],
        ["predict", image, "--modality", MODALITY, "--structures", "prostate", "--model", place / "adapter"],
    ]
    for command in commands:
        assert_told(call(*command, "--out", tmp_path / "file"), "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "a file"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "mine.txt", "used"]


def test_a_full_disk_leaves_nothing_half_written(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated = tmp_path / "eval"
    succeed("evaluate", *scoring()(place, tmp_path), "--out", evaluated, "--device", "cpu")
    training_steps = training("budget.steps=1", "validations=0", "--device", "cpu")(place, tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr(os, "replace", full)
    image = place / "source" / "images" / "case_0.nii.gz"
    for command in (
        ["prepare", place / "source", *DESCRIBED, "--out", tmp_path / "a"],
        ["train", *training_steps, "--out", tmp_path / "b"],
        ["evaluate", *scoring()(place, tmp_path), "--out", tmp_path / "c", "--device", "cpu"],
        ["report", evaluated],
        ["predict", image, "--modality", MODALITY, "--structures", "prostate", "--model", place / "adapter", "--out",
         tmp_path / "d"],
    ):  # fmt: skip
        assert_told(call(*command), "free some space")
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path not in before]
    assert not left


def test_a_mask_does_not_stay_without_its_note(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("adaptmedseg.inference.cases.write_atomic", full)
    outcome = predict(place, place / "source" / "images" / "case_0.nii.gz", tmp_path / "masks")
    assert_told(outcome, "case_0.json", "free some space")
    assert not list((tmp_path / "masks").iterdir())


def test_a_full_graphics_processor_is_told(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("adaptmedseg.cli.predict.Predictor.set_image", full)
    outcome = predict(place, place / "source" / "images" / "case_0.nii.gz", tmp_path / "masks")
    assert_told(outcome, "memory is full", "--device cpu")


# The program itself ---------------------------------------------------------------------


def test_help_and_version() -> None:
    outcome = succeed("--help")
    for command in ("demo", "prepare", "sets", "leaks", "check", "train", "evaluate", "predict", "report"):
        assert command in outcome.out
        assert "Examples:" in (text := succeed(command, "-h").out) or "Example:" in text
    assert succeed("--version").out.startswith("adaptmedseg ")
    assert call("predict").code == 2


def test_the_installed_program_tells_an_error_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "adaptmedseg.cli.main", "predict", "nowhere.nii.gz", "--out", "masks"]
    done = subprocess.run(
        [*command, "--modality", "CT", "--structures", "liver"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nowhere.nii.gz: does not exist; check the path\n"
    assert not list(tmp_path.iterdir())
