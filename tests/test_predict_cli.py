"""`adaptmedseg predict`: names of files, ways of asking, what is written and what is said."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TINY
from small_cases import AFFINE, MODALITY, SHAPE, Outcome, call, save, small_image, small_labels
from test_dicom import PLAIN, write_slices

from adaptmedseg.adapters.file import save_adapter
from adaptmedseg.checkpoints.store import load_base, save_base
from adaptmedseg.data.dicom import pick_series
from adaptmedseg.data.normalise import normalised_crop
from adaptmedseg.data.registry import modality
from adaptmedseg.errors import UserError
from adaptmedseg.inference.naming import find_cases, structure_file_names
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.inference.settings import InferenceSettings
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig
from adaptmedseg.models.prompts import StructurePrompt
from adaptmedseg.models.segvol import SegVol


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base and an adapter on it, fresh weights both."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    base = SegVol(TINY)
    save_base(folder / "base.safetensors", base, {"name": "tiny", "licence": "Apache-2.0"})
    adapted = AdaptedSegVol(base, AdapterConfig(), ["prostate", "bladder"], [MODALITY])
    save_adapter(folder / "adapter.safetensors", adapted, str(folder / "base.safetensors"), {})
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return save(tmp_path / "scan.nii.gz", small_image(0))


def predict(models: Path, image: Path, out: Path, *more: str | Path, model: str = "base") -> Outcome:
    return call("predict", image, "--out", out, "--modality", MODALITY, "--model", models / f"{model}.safetensors",
                "--device", "cpu", *more)  # fmt: skip


def told(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome
    sentence = outcome.err.splitlines()[-1]
    assert sentence.startswith("error: ")
    assert all(word in sentence for word in words), sentence


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def note_of(out: Path, name: str = "scan") -> dict:
    return json.loads((out / f"{name}.json").read_text(encoding="utf-8"))


# Names ------------------------------------------------------------------------------------


def names(folder: Path, *paths: str, kind: str = MODALITY, channel: int | None = None) -> dict[str, str]:
    """Mask name to image of what is found in a folder of empty files."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    found = find_cases(folder, modality(kind), channel)
    return {case.name: str(case.image.relative_to(folder)) for case in found.cases}


def test_plain_and_nnunet_names(tmp_path: Path) -> None:
    plain = names(tmp_path / "plain", "b.nii.gz", "a.mha", ".hidden.nii", "notes.txt")
    assert plain == {"a": "a.mha", "b": "b.nii.gz"}
    single = names(tmp_path / "single", "a_0000.nii.gz", "b_1_0000.nii.gz")
    assert single == {"a": "a_0000.nii.gz", "b_1": "b_1_0000.nii.gz"}
    counted = [f"phantom_{i:04d}.nii.gz" for i in range(3)]
    assert list(names(tmp_path / "counted", *counted)) == ["phantom_0000", "phantom_0001", "phantom_0002"]
    assert list(names(tmp_path / "amos", "amos_0001.nii.gz", "amos_0004.nii.gz")) == ["amos_0001", "amos_0004"]
    two = ("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    with pytest.raises(UserError, match=r"case 'a' has 2 channels .* choose one with --channel"):
        names(tmp_path / "two", *two)
    assert names(tmp_path / "two", *two, channel=1) == {"a": "a_0001.nii.gz", "b": "b_0001.nii.gz"}
    with pytest.raises(UserError, match="has no channel 2; it has 2"):
        names(tmp_path / "two", *two, channel=2)
    with pytest.raises(UserError, match="case 'a' has 2 channels"):
        names(tmp_path / "imagesTs", "a_0000.nii.gz", "a_0001.nii.gz")
    # A single file is called as it would be in its folder.
    for path, name in (
        (tmp_path / "single" / "a_0000.nii.gz", "a"),
        (tmp_path / "counted" / counted[0], counted[0][:-7]),
    ):
        assert [case.name for case in find_cases(path, modality(MODALITY)).cases] == [name]


def test_labels_beside_images_are_no_images(tmp_path: Path) -> None:
    found = names(tmp_path, "a.nii.gz", "a_seg.nii.gz", "b_image.nii.gz", "b_label.nii.gz", "c_mask.nii.gz")
    assert list(found) == ["a", "b_image", "c_mask"]  # there is no image "c"
    assert find_cases(tmp_path, modality(MODALITY)).notes == ["2 label maps beside the images were passed over"]


def test_bids_names(tmp_path: Path) -> None:
    tree = (
        "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/ses-a/anat/sub-02_ses-a_T2w.nii.gz",
        "sub-01/anat/sub-01_T2w_dseg.nii.gz", "sub-01/anat/sub-01_dseg.nii.gz", "sub-01/func/sub-01_task-x_bold.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_T2w.nii.gz", "sub-02/ses-a/anat/sub-02_ses-a_acq-3_T2starw.nii.gz",
    )  # fmt: skip
    found = names(tmp_path, *tree)
    assert found == {
        "sub-01/anat/sub-01_T2w_dseg": tree[0],
        "sub-02/ses-a/anat/sub-02_ses-a_T2w_dseg": tree[2],
        "sub-02/ses-a/anat/sub-02_ses-a_acq-3_T2starw_dseg": tree[7],
    }
    (note,) = find_cases(tmp_path, modality(MODALITY)).notes
    assert note.startswith("3 images that are no T2 MRI by their names were passed over")
    assert len(names(tmp_path, kind="MRI")) == 4
    assert list(names(tmp_path / "sub-02")) == [name[7:] for name in found if name.startswith("sub-02")]
    flat = names(tmp_path / "flat", "sub-01_T2w.nii.gz", "sub-02_T1w.nii.gz")
    assert flat == {"sub-01_T2w_dseg": "sub-01_T2w.nii.gz"}
    with pytest.raises(UserError, match=r"no CT by their names .* nothing is left"):
        names(tmp_path / "flat", kind="CT")


def test_structures_have_file_names_of_their_own() -> None:
    found = structure_file_names(["left kidney", "left/kidney", "Left_Kidney", "prostate", "../x", "é"])
    assert found["left kidney"] == "left_kidney"
    assert len({name.lower() for name in found.values()}) == len(found)
    assert not any("/" in name or name.startswith(".") for name in found.values())


# Trees and folders from end to end --------------------------------------------------------


def test_a_bids_tree_gives_a_tree(models: Path, tmp_path: Path) -> None:
    source = tmp_path / "bids"
    for seed, name in enumerate(("sub-01/anat/sub-01_T2w", "sub-02/anat/sub-02_T2w", "sub-02/anat/sub-02_T1w")):
        save(source / f"{name}.nii.gz", small_image(seed))
    outcome = predict(models, source, tmp_path / "out", "--structures", "prostate")
    assert outcome.code == 0, outcome
    assert "no T2 MRI by their names" in outcome.err
    assert files(tmp_path / "out") == [
        f"sub-0{i}/anat/sub-0{i}_T2w_dseg.{kind}" for i in (1, 2) for kind in ("json", "nii.gz")
    ]
    assert "2 of 2 images segmented, 0 left out" in outcome.err


def test_dicom_folders(models: Path, tmp_path: Path) -> None:
    image = small_image(0)
    write_slices(tmp_path / "scans" / "p1", image, PLAIN)
    write_slices(tmp_path / "scans" / "p2" / "t2", small_image(1), PLAIN)
    outcome = predict(models, tmp_path / "scans", tmp_path / "out", "--structures", "prostate")
    assert outcome.code == 0, outcome
    assert files(tmp_path / "out") == ["p1.json", "p1.nii.gz", "p2.json", "p2.nii.gz"]
    one = predict(models, tmp_path / "scans" / "p1", tmp_path / "one", "--structures", "prostate")
    assert (one.code, files(tmp_path / "one")) == (0, ["p1.json", "p1.nii.gz"])
    assert nib.load(tmp_path / "one" / "p1.nii.gz").shape == SHAPE
    note = note_of(tmp_path / "one", "p1")
    assert note["image_sha256"] is None
    assert note["series_uid"] == pick_series(tmp_path / "scans" / "p1").uid
    said = call("predict", tmp_path / "scans" / "p1", "--out", tmp_path / "ct", "--modality", "CT", "--structures",
                "liver", "--model", models / "base.safetensors", "--device", "cpu")  # fmt: skip
    assert "the DICOM series says that it is MR, and --modality says CT" in said.err
    write_slices(tmp_path / "scans" / "p1" / "more", image, PLAIN, series=2)
    more = tmp_path / "scans" / "p1" / "more"
    told(predict(models, more, tmp_path / "x", "--structures", "prostate", "--series", "7"), "no series '7'")
    both = predict(models, tmp_path / "scans" / "p1", tmp_path / "x", "--structures", "prostate")
    told(both, "holds 2 DICOM series; choose one with --series")
    chosen = predict(models, tmp_path / "scans" / "p1", tmp_path / "x", "--structures", "prostate", "--series", "2")
    assert (chosen.code, note_of(tmp_path / "x", "p1")["series"]) == (0, "2")


def test_failures_are_summed_up(models: Path, tmp_path: Path) -> None:
    for seed in range(3):
        save(tmp_path / "scans" / f"case_{seed}.nii.gz", small_image(seed))
    (tmp_path / "scans" / "case_1.nii.gz").write_bytes(b"nothing")
    outcome = predict(models, tmp_path / "scans", tmp_path / "out", "--structures", "prostate")
    assert outcome.code == 1
    assert "2 of 3 images segmented, 1 left out" in outcome.err
    rows = outcome.err[outcome.err.index("case  ") :]
    assert f"left out: {tmp_path / 'scans' / 'case_1.nii.gz'} is truncated or damaged" in rows
    assert outcome.err.count("truncated or damaged") == 1  # told once, at the end
    assert len(outcome.out.splitlines()) == 2
    for path in (tmp_path / "scans").iterdir():
        path.write_bytes(b"nothing")
    assert predict(models, tmp_path / "scans", tmp_path / "none", "--structures", "prostate").code == 2
    assert not (tmp_path / "none").exists()


# Ways of asking ---------------------------------------------------------------------------


def test_points_boxes_and_files_say_the_same(models: Path, image: Path, tmp_path: Path) -> None:
    voxel, inside = (7.0, 8.0, 3.0), AFFINE[:3, :3] @ (7, 8, 3) + AFFINE[:3, 3]
    outside = AFFINE[:3, :3] @ (20, 2, 6) + AFFINE[:3, 3]
    written = {
        "version": 1,
        "space": "voxel",
        "prompts": [
            {"structure": "prostate", "points": [
                {"position": voxel, "label": "positive"}, {"position": [20, 2, 6], "label": "negative"}]},
            {"structure": "urinary bladder", "box": {"min": [14, 14, 6], "max": [21, 5, 2]}},
        ],
    }  # fmt: skip
    (tmp_path / "prompts.json").write_text(json.dumps(written), encoding="utf-8")
    assert predict(models, image, tmp_path / "file", "--prompts", tmp_path / "prompts.json").code == 0
    voxels = ["--point", "prostate:7,8,3", "--point", "-prostate:20,2,6", "--box", "bladder:14,5,2,21,14,6"]
    assert predict(models, image, tmp_path / "voxel", *voxels, "--space", "voxel").code == 0
    world = [f"prostate:{','.join(map(str, inside))}", f"-prostate:{','.join(map(str, outside))}"]
    assert predict(models, image, tmp_path / "world", "--point", world[0], "--point", world[1]).code == 0
    masks = {kind: np.asarray(nib.load(tmp_path / kind / "scan.nii.gz").dataobj) for kind in ("file", "voxel")}
    np.testing.assert_array_equal(masks["file"], masks["voxel"])
    note = note_of(tmp_path / "file")
    assert note["labels"] == {"1": "prostate", "2": "bladder"}
    assert note["prompts"]["prostate"]["origin"] == "text + user points"
    assert note["prompts"]["prostate"]["points"][1] == {"position": [20, 2, 6], "label": "negative"}
    assert note["prompts"]["bladder"] == {"origin": "text + user box", "box": {"min": [14, 14, 6], "max": [21, 5, 2]}}
    assert (note["prompt_space"], note_of(tmp_path / "world")["prompt_space"]) == ("voxel", "world_mm")


def test_an_adapter_needs_no_prompt(models: Path, image: Path, tmp_path: Path) -> None:
    outcome = predict(models, image, tmp_path / "out", model="adapter")
    assert outcome.code == 0, outcome
    assert "automatic mode: prostate, bladder" in outcome.err
    origins = {name: prompt["origin"] for name, prompt in note_of(tmp_path / "out")["prompts"].items()}
    assert origins == {"prostate": "text + task token", "bladder": "text + task token"}
    told(predict(models, image, tmp_path / "no"), "tiny", "must be told", "--structures NAMES or --prompts FILE")
    assert not (tmp_path / "no").exists()


def test_a_folder_of_prompts(models: Path, tmp_path: Path) -> None:
    for seed in range(3):
        save(tmp_path / "scans" / f"case_{seed}.nii.gz", small_image(seed))
    (tmp_path / "prompts").mkdir()
    for seed in range(2):
        entry = {"structure": "prostate", "points": [{"position": [7 + seed, 8, 3]}]}
        document = {"version": 1, "space": "voxel", "prompts": [entry]}
        (tmp_path / "prompts" / f"case_{seed}.json").write_text(json.dumps(document), encoding="utf-8")
    outcome = predict(models, tmp_path / "scans", tmp_path / "out", "--prompts", tmp_path / "prompts")
    assert outcome.code == 1
    assert "case_2.json: is missing" in outcome.err
    positions = [note_of(tmp_path / "out", f"case_{i}")["prompts"]["prostate"]["points"][0]["position"] for i in (0, 1)]
    assert positions == [[7, 8, 3], [8, 8, 3]]
    one = tmp_path / "prompts" / "case_0.json"
    told(predict(models, tmp_path / "scans", tmp_path / "x", "--prompts", one), "belong to one image", "3", "FOLDER")
    told(predict(models, tmp_path / "scans", tmp_path / "x", "--point", "prostate:1,2,3"), "belong to one image")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--prompts", "PROMPTS", "--structures", "liver"], ("names all that is asked", "leave out --structures")),
        (["--prompts", "PROMPTS", "--box", "liver:1,2,3,4,5,6"], ("leave out --box",)),
        (["--prompts", "nowhere.json"], ("nowhere.json", "cannot be read")),
        (["--prompts", "PROMPTS"], ("prompts.json: prompts[0] (prostate): points[0] at", "outside the image scan.nii")),
        (["--point", "prostate:500,0,0"], ("command line: prompts[0] (prostate)", "outside the image", "RAS mm")),
        (["--point", "prostate"], ("--point prostate", "NAME:x,y,z")),
        (["--point", "prostate:1,2,3", "--space", "lps"], ("--space lps",)),
        (["--structures", "prostate,prostate gland"], ("'prostate' is named twice",)),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(
    models: Path, image: Path, tmp_path: Path, more: list[str], words: tuple[str, ...]
) -> None:
    path = tmp_path / "prompts.json"
    entry = {"structure": "prostate", "points": [{"position": [7, 8, 300]}]}
    path.write_text(json.dumps({"version": 1, "space": "voxel", "prompts": [entry]}), encoding="utf-8")
    told(predict(models, image, tmp_path / "out", *[str(path) if word == "PROMPTS" else word for word in more]), *words)
    assert not (tmp_path / "out").exists()


# What is written --------------------------------------------------------------------------


def test_every_file_that_is_asked_for(models: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = predict(models, image, out, "--structures", "left kidney,prostate", "--each", "--probabilities", "--zoom")
    assert outcome.code == 0, outcome
    folder = ["left_kidney.nii.gz", "left_kidney_probability.nii.gz", "prostate.nii.gz", "prostate_probability.nii.gz"]
    assert files(out) == ["scan.json", "scan.nii.gz", *[f"scan/{name}" for name in folder]]
    source = nib.load(image)
    for name in files(out)[1:]:
        written = nib.load(out / name)
        np.testing.assert_allclose(written.affine, source.affine, atol=1e-6)
        assert written.shape == source.shape
    kidney, probability = (np.asarray(nib.load(out / "scan" / name).dataobj) for name in folder[:2])
    assert probability.dtype == np.float32
    np.testing.assert_array_equal(kidney > 0, probability > 0.5)
    note = note_of(out)
    assert note["files"]["prostate"] == {"mask": f"scan/{folder[2]}", "probabilities": f"scan/{folder[3]}"}
    assert note["volume_ml"]["left kidney"] == pytest.approx(
        kidney.sum() * abs(np.linalg.det(AFFINE[:3, :3])) / 1000, abs=1e-3
    )
    told(predict(models, image, out, "--structures", "prostate", "--each"), "scan.nii.gz", "--overwrite")
    (out / "scan.nii.gz").unlink()
    (out / "scan.json").unlink()
    told(predict(models, image, out, "--structures", "prostate", "--each"), str(out / "scan"), "--overwrite")
    assert predict(models, image, out, "--structures", "prostate", "--each", "--overwrite").code == 0


def test_the_note_tells_how_the_mask_came_about(models: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(models, image, out, "--structures", "prostate", model="adapter").code == 0
    note = note_of(out)
    assert note["image"] == "scan.nii.gz"
    assert note["model"] == "adapter None on tiny"
    assert note["hashes"].keys() == {"base weights", "adapter file"}
    assert note["image_sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert "series_uid" not in note
    assert (note["shape"], note["orientation"]) == (list(SHAPE), "LPS")
    np.testing.assert_allclose(note["affine"], AFFINE, atol=1e-6)
    assert note["spacing_mm"] == pytest.approx([1.5, 1.5, 4.0], abs=1e-4)
    assert note["seconds"].keys() == {"read", "normalise", "encode", "decode", "stitch", "write"}
    assert all(value >= 0 for value in note["seconds"].values())
    assert {"torch", "numpy", "python", "adaptmedseg"} <= note["versions"].keys()
    assert (note["settings"]["bf16"], note["lattice"]) == (True, "volume")
    assert (note["zoom"], note["windows"]) == (False, {"prostate": 0})
    assert note["memory_given_up"] == []
    assert str(tmp_path) not in (out / "scan.json").read_text(encoding="utf-8")


def test_the_exact_way_is_the_references(models: Path, image: Path, tmp_path: Path) -> None:
    options = ("--structures", "prostate", "--zoom", "--probabilities")
    assert predict(models, image, tmp_path / "exact", *options, "--exact").code == 0
    note = note_of(tmp_path / "exact")
    assert (note["settings"]["bf16"], note["lattice"]) == (False, "region")
    predictor = Predictor.load(str(models / "base.safetensors"), device="cpu", exact=True)
    predictor.set_image(image, MODALITY)
    base, _ = load_base(str(models / "base.safetensors"))
    plain = InferenceSettings(bf16=False)
    reference = CropSegmenter(base.eval(), TINY.spatial_size, TINY.resize, predictor.device, plain, "region")
    reference.set_crop(normalised_crop(predictor.volume)[0], MODALITY)
    (expected,) = reference.segment([StructurePrompt("prostate")], zoom=True)
    (answer,) = predictor.answers(predictor.parse(
        {"version": 1, "space": "voxel", "prompts": [{"structure": "prostate"}]}), zoom=True)  # fmt: skip
    np.testing.assert_array_equal(answer.result.logits, expected.logits)


@pytest.mark.parametrize("folder", [True, False])
def test_a_note_never_replaces_the_prompts(models: Path, image: Path, tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "prompts" / "scan.json"
    path.parent.mkdir()
    path.write_text(
        json.dumps({"version": 1, "space": "voxel", "prompts": [{"structure": "prostate"}]}), encoding="utf-8"
    )
    before = path.read_text(encoding="utf-8")
    asked = ["--prompts", path.parent if folder else path]
    outcome = predict(models, image, path.parent, *asked, "--overwrite")
    told(outcome, "scan.json: holds the prompts", "choose another --out")
    assert files(path.parent) == ["scan.json"]
    assert path.read_text(encoding="utf-8") == before


def test_nothing_found_is_said(models: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SegVol, "segment", lambda self, embedding, prompts: -torch.ones(len(prompts), 8, 16, 16))
    outcome = predict(models, image, tmp_path / "out", "--structures", "prostate,liver")
    assert outcome.code == 0
    words = "no voxel found of prostate, liver: the view of the whole image shows none"
    assert f"note: {image}: {words}" in outcome.err
    note = note_of(tmp_path / "out")
    assert note["remarks"] == [words]
    assert note["found"] == {"prostate": False, "liver": False}


def test_a_failure_half_way_leaves_what_was_there(
    models: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert predict(models, image, out, "--structures", "prostate", "--each").code == 0
    before = {name: (out / name).read_bytes() for name in files(out)}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("adaptmedseg.inference.cases.write_atomic", full)
    outcome = predict(models, image, out, "--structures", "bladder", "--each", "--overwrite")
    told(outcome, str(out / "scan.json"), "free some space")
    assert {name: (out / name).read_bytes() for name in files(out)} == before


def test_labels_are_never_read(models: Path, tmp_path: Path) -> None:
    image = save(tmp_path / "scans" / "a.nii.gz", small_image(0))
    save(tmp_path / "scans" / "a_seg.nii.gz", small_labels(0)).write_bytes(b"not a volume")
    outcome = predict(models, tmp_path / "scans", tmp_path / "out", "--structures", "prostate")
    assert outcome.code == 0, outcome
    assert "label maps beside the images were passed over" in outcome.err
    assert files(tmp_path / "out") == ["a.json", "a.nii.gz"]
    assert image.exists()
