"""From a folder of images and labels to a prepared data set: layouts, bad input, splits, and real sets."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from adaptmedseg.preprocessing import run as run_module
from adaptmedseg.preprocessing.folder import prepare_folder
from adaptmedseg.preprocessing.split import fold_patients, patient_of, split_patients
from archives import itk
from small_cases import call, small_folder

from adaptmedseg.data.check import check_folder
from adaptmedseg.data.files import file_sha256, write_atomic
from adaptmedseg.data.normalise import crop_slices
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.data.volume import read_labels
from adaptmedseg.errors import UserError
from adaptmedseg.inference.case_note import image_hash

DATA = Path(os.environ.get("ADAPTMEDSEG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
AFFINE = np.array([[-0.6, 0.0, 0.0, 20.0], [0.0, -0.6, 0.1, 30.0], [0.0, 0.06, 3.0, -9.0], [0.0, 0.0, 0.0, 1.0]])
ZONES = {1: "peripheral zone", 2: "transition zone"}


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def image_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1000, (12, 10, 6)).astype(np.int16)


def labels_of(*values: int) -> np.ndarray:
    labels = np.zeros((12, 10, 6), np.uint8)
    for row, value in enumerate(values):
        labels[2 + 2 * row : 4 + 2 * row, 3:6, 2:4] = value
    return labels


def save_case(image: Path, label: Path, seed: int, values: tuple[int, ...] = (1, 2)) -> None:
    save(image, image_of(seed))
    save(label, labels_of(*values))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six cases in images/ and labels/ with an MSD-like dataset.json."""
    root = tmp_path / "source"
    for i in range(6):
        save_case(root / "images" / f"case_{i}.nii.gz", root / "labels" / f"case_{i}.nii.gz", i)
    labels = {"0": "background", "1": "peripheral zone", "2": "transition zone"}
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "T2"}, "labels": labels}), encoding="utf-8")
    return root


def test_a_described_folder_needs_no_labels(source: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    dataset = prepare_folder(
        source, tmp_path / "out", name="demo", labels={"1+2": "prostate"}, progress=lambda *at: calls.append(at)
    )
    assert dataset.structures == ("peripheral zone", "transition zone", "prostate")
    assert dataset.modalities == ("T2 MRI",)
    assert [len(dataset.cases(split)) for split in ("train", "val", "test")] == [4, 1, 1]
    assert calls == [(i, 6) for i in range(1, 7)]
    case = dataset.cases()[0]
    whole = case.mask("peripheral zone") | case.mask("transition zone")
    np.testing.assert_array_equal(case.mask("prostate"), whole)
    assert case.voxels == {"peripheral zone": 12, "transition zone": 12, "prostate": 24}
    assert case.annotated == dataset.structures


def test_a_case_keeps_what_leads_back_to_the_scanner(source: Path, tmp_path: Path) -> None:
    case = prepare_folder(source, tmp_path / "out", name="demo").cases()[0]
    labels = read_labels(source / "labels" / "case_0.nii.gz")
    np.testing.assert_allclose(case.grid.affine, AFFINE, atol=1e-6)
    assert case.grid.shape == (12, 10, 6)
    assert case.spacing == pytest.approx(labels.spacing)
    np.testing.assert_array_equal(case.mask("transition zone"), (labels.data == 2)[crop_slices(case.crop)])
    image = case.image()
    assert image.dtype == np.float32
    assert image.shape == case.shape
    assert 0 <= image.min() < image.max() <= 1
    digest = hashlib.sha256((source / "images" / "case_0.nii.gz").read_bytes()).hexdigest()
    assert case.sources["image"] == {"path": "images/case_0.nii.gz", "sha256": digest}


def test_an_absent_structure_is_unknown_unless_the_user_says_empty(source: Path, tmp_path: Path) -> None:
    save(source / "labels" / "case_0.nii.gz", labels_of(1))
    dataset = prepare_folder(source, tmp_path / "a", name="demo")
    assert dataset.cases()[0].annotated == ("peripheral zone",)
    with pytest.raises(ValueError, match="does not annotate 'transition zone'"):
        dataset.cases()[0].mask("transition zone")
    assert len(dataset.cases(structures=["tz"])) == 5
    empty = prepare_folder(source, tmp_path / "b", name="demo", absent="empty").cases()[0]
    assert not empty.mask("transition zone").any()


def test_voxels_outside_the_foreground_crop_are_counted(source: Path, tmp_path: Path) -> None:
    image = image_of(0)
    image[:3] = 0  # the first slab is background and is cropped away, with part of the peripheral zone
    save(source / "images" / "case_0.nii.gz", image)
    case = prepare_folder(source, tmp_path / "out", name="demo").cases()[0]
    assert case.voxels["peripheral zone"] == 12
    assert case.voxels_in_crop["peripheral zone"] == case.mask("peripheral zone").sum() == 6


def test_two_runs_and_worker_processes_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    prepare_folder(source, tmp_path / "a", name="demo", seed=3)
    prepare_folder(source, tmp_path / "b", name="demo", seed=3, workers=2)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


LAYOUTS = {
    "msd": ("imagesTr/p_{i}.nii.gz", "labelsTr/p_{i}.nii.gz"),
    "nnunet": ("imagesTr/p_{i:03}_0000.nii.gz", "labelsTr/p_{i:03}.nii.gz"),
    "nested": ("Task05/images/p_{i}.nii.gz", "Task05/labels/p_{i}.nii.gz"),
    "flat": ("p_{i}_image.nii.gz", "p_{i}_label.nii.gz"),
    "promise12": ("p{i}.mhd", "p{i}_segmentation.mhd"),
    "saml": ("BMC/p{i}.nii.gz", "BMC/p{i}_Segmentation.nii.gz"),
    "openkbp": ("pt_{i}_ct.nii.gz", "pt_{i}_label.nii.gz"),
    "acdc": ("patient{i}/patient{i}_frame01.nii.gz", "patient{i}/patient{i}_frame01_gt.nii.gz"),
    "atrium": ("P{i}/lgemri.nrrd", "P{i}/laendo.nrrd"),
    "btcv": ("images/img{i:04}.nii.gz", "labels/label{i:04}.nii.gz"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    import SimpleITK

    image_name, label_name = LAYOUTS[layout]
    for i in range(3):
        paths = [tmp_path / "in" / name.format(i=i) for name in (image_name, label_name)]
        for path, array in zip(paths, (image_of(i), labels_of(1, 2)), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name.endswith(".nii.gz"):
                save(path, array)
            else:
                SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.transpose()), str(path))
    (tmp_path / "in" / "._junk.nii.gz").write_bytes(b"junk of another operating system")
    dataset = prepare_folder(
        tmp_path / "in", tmp_path / "out", name="x", modality="T2", labels=ZONES, test_fraction=0.3, val_fraction=0
    )
    assert len(dataset.cases()) == 3
    assert len({case.id for case in dataset.cases()}) == 3
    assert all(case.voxels["peripheral zone"] == 12 for case in dataset.cases())


def test_cases_of_one_name_in_two_sites_stay_apart(tmp_path: Path) -> None:
    for n, site in enumerate(("BMC", "HK")):
        for i in range(2):
            folder = tmp_path / "in" / site
            save_case(folder / f"Case0{i}.nii.gz", folder / f"Case0{i}_segmentation.nii.gz", 10 * n + i)
    dataset = prepare_folder(
        tmp_path / "in", tmp_path / "out", name="saml", modality="T2", labels=ZONES, val_fraction=0
    )
    assert [case.id for case in dataset.cases()] == ["BMC-Case00", "BMC-Case01", "HK-Case00", "HK-Case01"]
    assert dataset.sites == ("BMC", "HK")
    train, test = dataset.leave_site_out("HK")
    assert {case.site for case in train} == {"BMC"}
    assert {case.site for case in test} == {"HK"}
    with pytest.raises(UserError, match="no site 'UCL'"):
        dataset.leave_site_out("UCL")


def test_nnunet_regions_channels_and_ignore_label(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for i in range(3):
        save_case(root / "imagesTr" / f"p_{i}_0000.nii.gz", root / "labelsTr" / f"p_{i}.nii.gz", i)
        save(root / "imagesTr" / f"p_{i}_0001.nii.gz", image_of(100 + i))
    described = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"background": 0, "prostate": [1, 2], "tz": 2}}
    (root / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(UserError, match=r"channels \[0, 1\]; choose one with --channel"):
        prepare_folder(root, tmp_path / "out", name="n")
    dataset = prepare_folder(root, tmp_path / "out", name="n", channel=1)
    assert dataset.modalities == ("ADC MRI",)
    assert dataset.cases()[0].voxels == {"prostate": 24, "transition zone": 12}
    assert dataset.cases()[0].sources["image"]["path"] == "imagesTr/p_0_0001.nii.gz"
    described["labels"] = {"background": 0, "prostate": 1, "ignore": 2}
    (root / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(UserError, match="'ignore'"):
        prepare_folder(root, tmp_path / "other", name="n", channel=0)


def test_one_channel_of_4d_images(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "in" / "images" / f"p{i}.nii.gz", np.stack([image_of(i), image_of(50 + i)], axis=-1))
        save(tmp_path / "in" / "labels" / f"p{i}.nii.gz", labels_of(1, 2))
    with pytest.raises(UserError, match="4D with 2 channels"):
        prepare_folder(tmp_path / "in", tmp_path / "out", name="x", modality="T2", labels=ZONES)
    dataset = prepare_folder(tmp_path / "in", tmp_path / "out", name="x", modality="T2", labels=ZONES, channel=0)
    assert len(dataset.cases()) == 3


def test_separate_folders(source: Path, tmp_path: Path) -> None:
    (source / "images").rename(tmp_path / "scans")
    (source / "labels").rename(tmp_path / "masks")
    dataset = prepare_folder(
        source, tmp_path / "out", name="x", images=tmp_path / "scans", label_folder=tmp_path / "masks"
    )
    assert dataset.cases()[0].sources["image"]["path"] == "scans/case_0.nii.gz"
    with pytest.raises(UserError, match="give both or neither"):
        prepare_folder(source, tmp_path / "other", name="x", images=tmp_path / "scans")


def test_two_labels_of_one_image_are_told_by_name(source: Path, tmp_path: Path) -> None:
    label = source / "labels" / "case_3.nii.gz"
    (source / "labels" / "case_3_seg.nii.gz").write_bytes(label.read_bytes())
    (told,) = prepare_folder(source, tmp_path / "out", name="x").manifest["left_out"]
    assert "case_3.nii.gz has 2 labels (" in told
    assert "case_3_seg.nii.gz" in told


# Bad input: one trap each, with the file, the value and the remedy in the sentence.


def _spoil(source: Path, kind: str) -> None:
    image, label = source / "images" / "case_3.nii.gz", source / "labels" / "case_3.nii.gz"
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    actions = {
        "truncated image": lambda: image.write_bytes(image.read_bytes()[:300]),
        "truncated label": lambda: label.write_bytes(label.read_bytes()[:60]),
        "label of another shape": lambda: save(label, labels_of(1, 2)[:, :, :-1]),
        "label of another affine": lambda: save(label, labels_of(1, 2), shifted),
        "unnamed value": lambda: save(label, labels_of(1, 2, 9)),
        "empty label": lambda: save(label, labels_of()),
        "soft label": lambda: save(label, labels_of(1, 2).astype(np.float32) / 2),
        "no label": label.unlink,
        "no image": image.unlink,
        "nan": lambda: save(image, np.full((12, 10, 6), np.nan, np.float32)),
        "constant": lambda: save(image, np.ones((12, 10, 6), np.int16)),
    }
    actions[kind]()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated image", r"images/case_3\.nii\.gz is truncated or damaged"),
        ("truncated label", r"labels/case_3\.nii\.gz is truncated or damaged"),
        ("label of another shape", r"shape \(12, 10, 5\) and its image case_3\.nii\.gz has \(12, 10, 6\); resample"),
        ("label of another affine", r"lies up to 5\.00 mm away from its image case_3.*origin"),
        ("unnamed value", r"label values \[9\] that have no name; name each \(--label 9=NAME\)"),
        ("empty label", r"case_3\.nii\.gz is empty.*--absent empty"),
        ("soft label", "not integers"),
        ("no label", r"images/case_3\.nii\.gz has no label.*--skip-unlabelled"),
        ("no image", r"labels/case_3\.nii\.gz has no image"),
        ("nan", "NaN"),
        ("constant", "is constant"),
    ],
)
def test_a_bad_case_is_left_out_and_the_others_go_on(source: Path, tmp_path: Path, kind: str, says: str) -> None:
    _spoil(source, kind)
    dataset = prepare_folder(source, tmp_path / "out", name="x")
    (sentence,) = dataset.manifest["left_out"]
    assert re.search(says, sentence)
    assert "\n" not in sentence
    assert str(tmp_path) not in sentence
    assert [case.id for case in dataset.cases()] == [f"case_{i}" for i in (0, 1, 2, 4, 5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_where_no_case_is_good_all_are_listed_and_nothing_is_left(source: Path, tmp_path: Path) -> None:
    for i in range(6):
        save(source / "labels" / f"case_{i}.nii.gz", labels_of(7))
    with pytest.raises(UserError, match=r"(?s)case_0.*And 5 more:.*case_1.*case_2"):
        prepare_folder(source, tmp_path / "out", name="x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_unlabelled_images_can_be_skipped_and_values_dropped(source: Path, tmp_path: Path) -> None:
    (source / "labels" / "case_3.nii.gz").unlink()
    dataset = prepare_folder(source, tmp_path / "out", name="x", skip_unlabelled=True, labels={2: "background"})
    assert len(dataset.cases()) == 5
    assert dataset.structures == ("peripheral zone",)


def test_one_image_under_two_names_is_kept_once(source: Path, tmp_path: Path) -> None:
    (source / "images" / "case_1.nii.gz").write_bytes((source / "images" / "case_0.nii.gz").read_bytes())
    dataset = prepare_folder(source, tmp_path / "out", name="x")
    assert "case_0, case_1 are one and the same image" in dataset.manifest["left_out"][0]
    assert "case_1" not in {case.id for case in dataset.cases()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"modality": "T3"}, "Unknown modality 'T3'"),
        ({"labels": {1: "prostrate"}}, r"Unknown structure 'prostrate' \(closest: prostate"),
        ({"labels": {0: "prostate"}}, "Label value 0 is the background"),
        ({"labels": {"1,2": "prostate"}}, "no label value"),
        ({"labels": {1: "background", 2: "background"}}, "No label is named"),
        ({"absent": "none"}, "choose unannotated or empty"),
        ({"test_fraction": 0.9, "val_fraction": 0.2}, "below 1 together"),
        ({"folds": 7}, "7 folds of 6 patients"),
        ({"patient_pattern": "("}, "no regular expression"),
        ({"patient_pattern": r"sub-(\d+)"}, "does not match the case"),
    ],
)
def test_bad_arguments(source: Path, tmp_path: Path, arguments: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        prepare_folder(source, tmp_path / "out", name="x", **arguments)
    assert not (tmp_path / "out").exists()


def test_empty_missing_and_undescribed_folders(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no volumes"):
        prepare_folder(tmp_path / "empty", tmp_path / "out", name="x", modality="CT", labels={1: "liver"})
    with pytest.raises(UserError, match="does not exist"):
        prepare_folder(tmp_path / "nowhere", tmp_path / "out", name="x")
    (source / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        prepare_folder(source, tmp_path / "out", name="x")
    (source / "dataset.json").unlink()
    with pytest.raises(UserError, match="--label 1="):
        prepare_folder(source, tmp_path / "out", name="x", modality="T2")
    with pytest.raises(UserError, match="--modality"):
        prepare_folder(source, tmp_path / "out", name="x", labels=ZONES)


def test_other_folders_are_never_overwritten(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds other files"):
            prepare_folder(source, out, name="x", overwrite=overwrite)
    (out / "thesis.txt").unlink()
    prepare_folder(source, out, name="first")
    with pytest.raises(UserError, match="--overwrite"):
        prepare_folder(source, out, name="second")
    assert prepare_folder(source, out, name="second", overwrite=True).name == "second"


def test_a_killed_run_looks_incomplete_and_is_cleared(source: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    with pytest.raises(UserError, match="in the way"):
        prepare_folder(source, tmp_path / "out", name="x")
    (partial / ".writing").write_text("elsewhere 1", encoding="utf-8")
    prepare_folder(source, tmp_path / "out", name="x")
    assert not partial.exists()


def test_a_full_disk_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_module, "write_case", full)
    with pytest.raises(UserError, match="disk is full"):
        prepare_folder(source, tmp_path / "out", name="x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_place_that_cannot_be_written_is_told(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(UserError, match="check paths and permissions"):
        prepare_folder(source, tmp_path / "file" / "out", name="x")


def test_new_structures_live_in_the_manifest(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--new-structure"):
        prepare_folder(source, tmp_path / "out", name="x", labels={1: "zonule"})
    dataset = prepare_folder(
        source, tmp_path / "out", name="x", labels={1: "Zonule"}, new_structures=["zonule", "liver", "unused"]
    )
    assert dataset.structures == ("transition zone", "zonule")
    assert list(dataset.manifest["extra_structures"]) == ["zonule"]
    assert PreparedDataset.open(tmp_path / "out").registry.structure("ZONULE").name == "zonule"


# Archives


def test_zip_archives_are_read_and_named_in_errors(source: Path, tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in source.rglob("*"):
            file.write(path, Path("Task") / path.relative_to(source))
    dataset = prepare_folder(archive, tmp_path / "out", name="x")
    assert dataset.cases()[0].sources["image"]["path"] == "Task/images/case_0.nii.gz"
    with pytest.raises(UserError, match=r"set\.zip/Task/labels/case_0"):
        prepare_folder(archive, tmp_path / "other", name="x", labels={3: "liver", 2: "background", "1": "background"})


def test_unsafe_and_damaged_archives_are_refused(tmp_path: Path) -> None:
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as file:
        file.writestr("../escaped.nii", b"x")
    link = tmp_path / "link.zip"
    with zipfile.ZipFile(link, "w") as file:
        entry = zipfile.ZipInfo("link.nii")
        entry.external_attr = 0o120777 << 16
        file.writestr(entry, "/etc/passwd")
    damaged = tmp_path / "damaged.zip"
    with zipfile.ZipFile(damaged, "w") as file:
        file.writestr("a.nii", b"some bytes that will not match")
    damaged.write_bytes(damaged.read_bytes().replace(b"some", b"same"))
    other = tmp_path / "a.rar"
    other.write_bytes(b"Rar!")
    for path, says in ((evil, "unsafe"), (link, "link"), (damaged, "damaged archive"), (other, "neither a folder nor")):
        with pytest.raises(UserError, match=says):
            prepare_folder(path, tmp_path / "out", name="x", modality="CT", labels={1: "liver"})
    assert not (tmp_path / "escaped.nii").exists()


# Opening


def test_wrong_folders_and_damaged_manifests_are_told(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no prepared data set \(no manifest"):
        PreparedDataset.open(source)
    out = tmp_path / "out"
    good = prepare_folder(source, out, name="x").manifest
    for change, says in (
        ({"format": "other"}, "no manifest of a prepared"),
        ({"version": 99}, "version 99"),
        ({"cases": [{"id": "a"}]}, "damaged"),
        ({"cases": [{**good["cases"][0], "id": "../a"}]}, "unsafe case id"),
    ):
        write_atomic(out / "manifest.json", json.dumps({**good, **change}))
        with pytest.raises(UserError, match=says):
            PreparedDataset.open(out)
    write_atomic(out / "manifest.json", "{")
    with pytest.raises(UserError, match="damaged"):
        PreparedDataset.open(out)
    write_atomic(out / "manifest.json", json.dumps(good))
    wrong = out / "cases" / "case_0" / "image.npy"
    kept = wrong.read_bytes()
    np.save(wrong, np.zeros((1, 1, 1), np.int16))
    with pytest.raises(UserError, match="where the manifest says"):
        PreparedDataset.open(out)
    wrong.write_bytes(kept)
    (out / "cases" / "case_0" / "masks.npy").unlink()
    with pytest.raises(UserError, match=r"masks\.npy is missing"):
        PreparedDataset.open(out)


# Splits


def test_splits_depend_on_seed_and_names_alone() -> None:
    patients = [f"p{i}" for i in range(20)]
    first = split_patients(patients, test_fraction=0.2, val_fraction=0.1, seed=0)
    assert first == split_patients(patients[::-1] + patients[:3], test_fraction=0.2, val_fraction=0.1, seed=0)
    assert first != split_patients(patients, test_fraction=0.2, val_fraction=0.1, seed=1)
    assert [list(first.values()).count(name) for name in ("test", "val", "train")] == [4, 2, 14]
    with pytest.raises(UserError, match=r"The patients are too few \(2\)"):
        split_patients(["a", "b"], test_fraction=0.2, val_fraction=0.2, seed=0)
    folds = fold_patients(patients, folds=3, seed=0)
    assert sorted(list(folds.values()).count(k) for k in range(3)) == [6, 7, 7]


def test_patients_from_ids() -> None:
    assert patient_of("patient001_frame01", None) == "patient001"
    assert patient_of("a-visit2", None) == "a"
    assert patient_of("case_12", None) == "case_12"
    assert patient_of("sub-07_ses-1_t2", r"sub-(\d+)") == "07"


def test_folds_keep_patients_together(tmp_path: Path) -> None:
    for i in range(8):
        stem = tmp_path / "in" / f"patient00{i // 2}_frame{i % 2}1"
        save_case(Path(f"{stem}_image.nii.gz"), Path(f"{stem}_label.nii.gz"), i)
    dataset = prepare_folder(tmp_path / "in", tmp_path / "out", name="x", modality="cine", labels=ZONES, folds=4)
    for k in range(4):
        train, test = dataset.fold(k)
        assert (len(train), len(test)) == (6, 2)
        assert not {case.patient for case in train} & {case.patient for case in test}
    assert [case.id for case in dataset.cases("test")] == [case.id for case in dataset.fold(0)[1]]
    with pytest.raises(UserError, match="no fold 4"):
        dataset.fold(4)


# Real sets


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"no real data at {DATA / name}")
    return DATA / name


@pytest.mark.realdata
def test_promise12_archive(tmp_path: Path) -> None:
    dataset = prepare_folder(
        real("promise12/training_data.zip"), tmp_path / "out", name="PROMISE12", modality="T2", labels={1: "prostate"}
    )
    assert [case.id for case in dataset.cases()] == [f"Case{i}" for i in range(13, 23)]
    assert all(10_000 < np.prod(case.spacing) * case.voxels["prostate"] < 200_000 for case in dataset.cases())  # mm³
    assert all(case.voxels == case.voxels_in_crop for case in dataset.cases())
    assert dataset.cases()[0].grid.codes == "LPS"


@pytest.mark.realdata
def test_openkbp_cases_annotate_what_they_hold(tmp_path: Path) -> None:
    names = "brainstem", "spinal cord", "right parotid", "left parotid", "oesophagus", "larynx", "mandible"
    dataset = prepare_folder(
        real("openkbp-ct"), tmp_path / "out", name="OpenKBP", modality="CT", labels=dict(enumerate(names, start=1))
    )
    assert len(dataset.cases()) == 14
    assert len(dataset.cases(structures=["esophagus"])) == 5
    assert len(dataset.cases(structures=["larynx"])) == 7


@pytest.mark.realdata
def test_acdc_frames_stay_with_their_patient(tmp_path: Path) -> None:
    labels = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
    dataset = prepare_folder(real("acdc-mr"), tmp_path / "out", name="ACDC", modality="cine", labels=labels, folds=5)
    assert len({case.patient for case in dataset.cases()}) == 10
    for k in range(5):
        train, test = dataset.fold(k)
        assert len(test) == 4
        assert not {case.patient for case in train} & {case.patient for case in test}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--leave-site-out", "A", "--test-fraction", "0.3"], "--test-fraction means nothing with --leave-site-out A"),
        (["--leave-site-out", "A", "--folds", "2"], "--folds means nothing with --leave-site-out A"),
        (["--folds", "2", "--val-fraction", "0.1"], "--val-fraction means nothing with --folds"),
    ],
)
def test_options_that_undo_each_other_are_refused(tmp_path: Path, options: list[str], says: str) -> None:
    source = small_folder(tmp_path / "in", 2)
    outcome = call("prepare", source, "--out", tmp_path / "out", "--modality", "T2", "--label", "1=liver", *options)
    assert (outcome.code, says in outcome.err) == (2, True), outcome.err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"split": "traim"}, "gives case_0 the split 'traim'; write one of train, val, test"),
        ({"fold": 2}, "gives case_0 the fold 2; write one of 0 to 1"),
        ({"fold": -1}, "gives case_0 the fold -1; write one of 0 to 1"),
        ({"fold": "0"}, "gives case_0 the fold '0'; write one of 0 to 1"),
    ],
)
def test_a_split_or_fold_that_is_none_is_told(tmp_path: Path, change: dict[str, object], says: str) -> None:
    labels = {1: "liver", 2: "spleen"}
    prepare_folder(small_folder(tmp_path / "in", 3), tmp_path / "out", name="n", modality="T2", labels=labels, folds=2)
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["cases"][0] |= change
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match=says):
        PreparedDataset.open(tmp_path / "out")


def test_an_image_has_one_hash_everywhere(tmp_path: Path) -> None:
    """That of its voxels' file: a MetaImage header under another name is the same image."""
    source = tmp_path / "in"
    for number, name in enumerate("ab"):
        itk(source / f"{name}.mhd", image_of(number))
        itk(source / f"{name}_label.mhd", labels_of(1))
    dataset = prepare_folder(
        source, tmp_path / "out", name="n", modality="T2", labels={1: "liver"}, test_fraction=0, val_fraction=0
    )
    for case in dataset.cases():
        data = file_sha256(source / f"{case.id}.raw")
        assert case.sources["image"]["sha256"] == image_hash(source / f"{case.id}.mhd") == data
    (source / "b.raw").write_bytes((source / "a.raw").read_bytes())
    assert check_folder(source).folder_errors == ("The cases a, b are one and the same image file; keep one of them.",)
