"""Every published set in its published layout, and the traps in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from adaptmedseg.preprocessing.known import prepare_set
from adaptmedseg.preprocessing.sets import KNOWN
from adaptmedseg.preprocessing.split import Partition
from archives import LAYOUTS, SHAPE, image_of, itk, labels_of, nifti, ppm, tarred, zipped
from small_cases import call

from adaptmedseg.data.normalise import crop_slices
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset
from adaptmedseg.data.registry import default_registry
from adaptmedseg.errors import UserError

SHARES = Partition(test_fraction=0.25, val_fraction=0)
ZONES = ("peripheral zone", "transition zone", "prostate")


def prepared(name: str, tmp_path: Path, **options) -> PreparedDataset:
    """The set in its layout, prepared."""
    if not (tmp_path / "in").exists():
        LAYOUTS[name](tmp_path / "in")
    return prepare_set(name, tmp_path / "in", tmp_path / "out", overwrite=True, **{"partition": SHARES, **options})


def by_id(dataset: PreparedDataset) -> dict[str, PreparedCase]:
    return {case.id: case for case in dataset.cases()}


def test_every_known_set_has_a_layout_here_and_known_names() -> None:
    assert set(KNOWN) == set(LAYOUTS)
    registry = default_registry()
    for known in KNOWN.values():
        names = [*known.labels.values(), *(name for target in known.targets for name in known.structures(target))]
        assert [registry.structure(name).name for name in names] == names
        assert known.page
        assert known.stated_licence


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("packed", ["folder", "zip"])
def test_published_layouts_are_read(name: str, packed: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path / "in")
    source = tmp_path / "in" if packed == "folder" else zipped(tmp_path / "in", tmp_path / "set.zip")
    dataset = prepare_set(name, source, tmp_path / "out", partition=SHARES)
    assert len(dataset.cases()) >= 4
    assert len(dataset.manifest["left_out"]) == (2 if name == "nnunet" else 0)
    assert dataset.manifest["licence"]
    sides: dict[str, set[str]] = {}
    for case in dataset.cases():
        sides.setdefault(case.patient, set()).add(case.split)
        assert case.annotated
        assert 0 <= case.image().min() < case.image().max() <= 1
    assert all(len(side) == 1 for side in sides.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"in", "out", source.name})


# The prostate sets


def test_task05_has_two_channels_two_zones_and_their_union(tmp_path: Path) -> None:
    dataset = prepared("msd-prostate", tmp_path)
    assert dataset.structures == ZONES
    case = by_id(dataset)["prostate_00-t2"]
    assert (case.modality, case.patient, case.annotated) == ("T2 MRI", "prostate_00", ZONES)
    assert case.voxels == {"peripheral zone": 10, "transition zone": 10, "prostate": 20}
    np.testing.assert_array_equal(case.mask("prostate"), case.mask("peripheral zone") | case.mask("transition zone"))
    gland = prepared("msd-prostate", tmp_path, target="gland", contrasts=["all"])
    assert gland.structures == ("prostate",)
    assert gland.modalities == ("ADC MRI", "T2 MRI")
    assert len(gland.cases()) == 8
    adc = by_id(gland)["prostate_00-adc"].image()
    assert not np.array_equal(adc, by_id(gland)["prostate_00-t2"].image())


def test_a_dataset_json_that_disagrees_wins_and_is_told(tmp_path: Path) -> None:
    LAYOUTS["msd-prostate"](tmp_path / "in")
    described = {"modality": {"0": "ADC", "1": "T2"}, "labels": {"0": "background", "1": "TZ", "2": "PZ"}}
    (tmp_path / "in/Task05_Prostate/dataset.json").write_text(json.dumps(described), encoding="utf-8")
    dataset = prepared("msd-prostate", tmp_path)
    assert dataset.manifest["label_values"]["peripheral zone"] == [2]
    assert any("dataset.json names the labels" in note for note in dataset.manifest["notes"])
    case = by_id(dataset)["prostate_00-t2"]
    canonical = image_of(100).transpose(2, 1, 0)[:, ::-1, ::-1]  # the file's second channel
    np.testing.assert_allclose(case.intensities(), canonical[crop_slices(case.crop)], atol=1)


def test_a_gland_without_one_zone_is_not_annotated(tmp_path: Path) -> None:
    LAYOUTS["msd-prostate"](tmp_path / "in")
    nifti(tmp_path / "in/Task05_Prostate/labelsTr/prostate_00.nii.gz", labels_of(1))
    case = by_id(prepared("msd-prostate", tmp_path))["prostate_00-t2"]
    assert case.annotated == ("peripheral zone",)


def test_saml_keeps_sites_and_both_spellings(tmp_path: Path) -> None:
    dataset = prepared("saml", tmp_path, partition=None)
    assert dataset.sites == ("BIDMC", "BMC", "HK", "I2CVB", "RUNMC", "UCL")
    assert len(dataset.cases()) == 12
    assert dataset.folds == 6
    assert all(case.voxels == {"prostate": 20} for case in dataset.cases())  # any value above 0
    for fold in range(6):
        train, test = dataset.fold(fold)
        assert {case.site for case in test} == {dataset.sites[fold]}
        assert not {case.site for case in train} & {case.site for case in test}
    assert dataset.manifest["division"] == "one fold a site"
    left = prepared("saml", tmp_path, partition=Partition(val_fraction=0.2, left_out_site="hk"))
    assert {case.site for case in left.cases("test")} == {"HK"}
    assert left.cases("val")
    with pytest.raises(UserError, match="No case is of the site 'Bonn'; the sites are BIDMC"):
        prepared("saml", tmp_path, partition=Partition(left_out_site="Bonn"))


def test_tiff_stacks_have_no_spacing_unless_it_is_given(tmp_path: Path) -> None:
    dataset = prepared("t2w-prostate", tmp_path)
    assert not dataset.manifest["cases"][0]["spacing_stated"]
    assert dataset.cases()[0].grid.shape == SHAPE
    given = prepared("t2w-prostate", tmp_path, spacing=(3.0, 0.5, 0.4))
    assert given.manifest["cases"][0]["spacing_stated"]
    assert given.cases()[0].spacing == pytest.approx((3.0, 0.5, 0.4))
    with pytest.raises(UserError, match="state their spacing"):
        prepare_set("promise12", tmp_path / "in", tmp_path / "other", spacing=(3.0, 0.5, 0.4))


# The other sets


def test_amos_above_500_is_mri_whatever_the_json_says(tmp_path: Path) -> None:
    cases = by_id(prepared("amos22", tmp_path))
    assert {name: case.modality for name, case in cases.items()} == {
        "amos_0001": "CT",
        "amos_0500": "CT",
        "amos_0507": "MRI",
        "amos_0600": "MRI",
    }


def test_chaos_pictures_follow_their_slices_whatever_files_are_called(tmp_path: Path) -> None:
    cases = by_id(prepared("chaos", tmp_path))
    assert len(cases) == 8
    assert {case.patient for case in cases.values()} == {"CT1", "CT2", "MR1", "MR2"}
    assert cases["CT1-ct"].modality == "CT"
    assert cases["MR1-t1in"].voxels["right kidney"] == cases["MR1-t1out"].voxels["right kidney"] == 16
    assert cases["MR1-t1in"].annotated == ("right kidney",)
    for case in cases.values():
        mask = case.mask(case.annotated[0])
        assert mask[0].sum() == 16  # the lowest slice: d grows to the head
        assert not mask[1:].any()


def test_chaos_grey_levels_in_between_are_told(tmp_path: Path) -> None:
    LAYOUTS["chaos"](tmp_path / "in")
    folder = tmp_path / "in/Train_Sets/MR/1/T2SPIR/Ground"
    itk(folder / "img001.png", np.full(SHAPE[:2], 90, np.uint8))
    (tmp_path / "in/Train_Sets/MR/2/T2SPIR/Ground/img001.png").unlink()
    left_out = prepared("chaos", tmp_path).manifest["left_out"]
    assert len(left_out) == 2
    assert "grey levels [90]" in left_out[0]
    assert "5 pictures for 6 slices" in left_out[1]


def test_brats_contrasts_share_a_patient_and_an_annotation(tmp_path: Path) -> None:
    dataset = prepared("brats2021", tmp_path)
    cases = by_id(dataset)
    assert len(cases) == 16
    assert len({case.patient for case in cases.values()}) == 4
    first = cases["BraTS2021_00000-flair"]
    assert first.modality == "FLAIR MRI"
    assert first.voxels["whole tumour"] == 20
    assert "enhancing tumour" in first.annotated  # annotated, and there is none
    assert cases["BraTS2021_00001-t1"].voxels == {
        "necrotic core": 10,
        "oedema": 10,
        "enhancing tumour": 10,
        "tumour core": 20,
        "whole tumour": 30,
    }


def test_m3d_masks_overlap_and_lists_are_the_split(tmp_path: Path) -> None:
    dataset = prepared("m3d-seg", tmp_path, partition=Partition(val_fraction=0))
    cases = by_id(dataset)
    assert cases["amos_0507"].modality == "MRI"
    assert "is marked CT and is MRI" in dataset.manifest["notes"][0]
    assert {name: case.split for name, case in cases.items()}["d"] == "test"
    both = cases["c"].mask("liver") & cases["c"].mask("liver tumour")
    assert both.sum() == 8
    assert cases["c"].voxels == {"liver": 16, "liver tumour": 12}
    assert not dataset.manifest["cases"][0]["spacing_stated"]


def test_cases_of_one_name_are_left_out_and_told(tmp_path: Path) -> None:
    """A case that both lists name would be in two splits, and two images of one name in one folder."""
    LAYOUTS["m3d-seg"](tmp_path)
    path = tmp_path / "0009" / "0009.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["train"] += described["test"]
    path.write_text(json.dumps(described), encoding="utf-8")
    dataset = prepare_set("m3d-seg", tmp_path, tmp_path / "out")
    assert [case.id for case in dataset.cases()] == ["amos_0001", "amos_0507", "c"]
    (told,) = dataset.manifest["left_out"]
    assert "are all called d; keep or rename one" in told


def test_m3d_damage_is_told_and_no_code_is_run(tmp_path: Path) -> None:
    LAYOUTS["m3d-seg"](tmp_path / "in")
    folder = tmp_path / "in/0009"
    np.save(folder / "c/image.npy", np.array([{"an": "object"}]), allow_pickle=True)
    mask = next((folder / "d").glob("*.npz"))
    mask.write_bytes(mask.read_bytes()[:80])
    (folder / "amos_0001/image.npy").unlink()
    left_out = prepared("m3d-seg", tmp_path, partition=Partition(val_fraction=0)).manifest["left_out"]
    assert len(left_out) == 3
    assert all(word in " ".join(left_out) for word in ("in the lists and not in the folder", "damaged", "get it again"))


def test_nnunet_regions_channels_and_ignored_voxels(tmp_path: Path) -> None:
    dataset = prepared("nnunet", tmp_path)
    assert dataset.structures == ("prostate", "transition zone")
    assert set(dataset.modalities) == {"T2 MRI", "ADC MRI"}
    assert len(dataset.cases()) == 6
    assert all("label values [3]" in sentence for sentence in dataset.manifest["left_out"])
    assert by_id(dataset)["Pro_001-t2"].voxels == {"prostate": 20, "transition zone": 10}


def test_acdc_frames_share_a_patient_and_testing_is_the_test(tmp_path: Path) -> None:
    LAYOUTS["acdc"](tmp_path / "in/training")
    LAYOUTS["acdc"](tmp_path / "in/other")
    (tmp_path / "in/other/patient001").rename(tmp_path / "in/patient101")
    for path in (tmp_path / "in/patient101").iterdir():
        path.rename(path.with_name(path.name.replace("patient001", "patient101")))
    (tmp_path / "in/testing").mkdir()
    (tmp_path / "in/patient101").rename(tmp_path / "in/testing/patient101")
    import shutil

    shutil.rmtree(tmp_path / "in/other")
    for path in (tmp_path / "in/testing/patient101").glob("*frame??.nii.gz"):
        nifti(path, image_of(hash(path.name) % 1000 + 5000))
    dataset = prepared("acdc", tmp_path, partition=None)
    assert {case.patient for case in dataset.cases("test")} == {"patient101"}
    assert len(dataset.cases()) == 10
    assert dataset.cases("val")


def test_isles_flair_gets_its_mask_on_its_own_grid(tmp_path: Path) -> None:
    dataset = prepared("isles2022", tmp_path, contrasts=["flair", "dwi"])
    cases = by_id(dataset)
    flair, dwi = cases["sub-strokecase0002-flair"], cases["sub-strokecase0002-dwi"]
    assert flair.grid.shape == (24, 20, 6)
    assert dwi.voxels["stroke lesion"] == 10
    assert 30 <= flair.voxels["stroke lesion"] <= 50  # voxels are a quarter as large
    assert "nearest neighbour" in dataset.manifest["cases"][1]["notes"][0]
    healthy = cases["sub-strokecase0001-dwi"]
    assert healthy.voxels["stroke lesion"] == 0
    assert healthy.annotated == ("stroke lesion",)


def test_stare_has_two_annotators_and_single_slices(tmp_path: Path) -> None:
    first = prepared("stare", tmp_path)
    assert {case.id for case in first.cases()} == {"im0001", "im0002", "im0044", "im0077"}
    assert first.cases()[0].grid.shape == (30, 20, 1)
    assert first.cases()[0].voxels == {"vessel": 20}
    assert prepared("stare", tmp_path, target="vk").cases()[0].voxels == {"vessel": 30}
    ppm(tmp_path / "in/stare-images/im0002.ppm.gz", np.zeros((4, 4), np.uint8))
    (tmp_path / "in/stare-images/im0044.ppm.gz").write_bytes(b"P6\n30 20\n255\nshort")
    assert len(prepared("stare", tmp_path).manifest["left_out"]) == 2


# Bad input: one trap each; the other cases go on.


def _spoil(root: Path, kind: str) -> None:
    folder = root / "training_data"
    image, label = folder / "Case01.mhd", folder / "Case01_segmentation.mhd"
    if kind == "missing raw":
        image.with_suffix(".raw").unlink()
    elif kind == "short raw":
        image.with_suffix(".raw").write_bytes(b"\0" * 100)
    elif kind == "label value":
        itk(label, labels_of(3))
    elif kind == "other grid":
        itk(label, labels_of(1, shape=(12, 10, 5)))
    elif kind == "no annotation":
        label.unlink()
    elif kind == "no image":
        image.unlink()
    elif kind == "two annotations":
        itk(folder / "Case01_Segmentation.mhd", labels_of(1))
    elif kind == "empty":
        itk(label, labels_of())
    elif kind == "one image twice":
        itk(image, image_of(0))


@pytest.mark.parametrize(
    ("name", "annotation", "another"),
    [
        ("promise12", "Case01_segmentation.mhd", "Case01_segmentation_v2.mhd"),
        ("promise12", "Case01_segmentation.mhd", "Case01_seg.mha"),
        ("saml", "Case01_Segmentation.nii.gz", "Case01_segmentation (1).nii.gz"),
        ("t2w-prostate", "P_001_SEG.tiff", "P_001_SEG_corrected.tif"),
        ("acdc", "patient001_frame01_gt.nii.gz", "patient001_frame01_gt_second.nii"),
        ("brats2021", "BraTS2021_00001_seg.nii.gz", "BraTS2021_00001_seg-new.nii.gz"),
    ],
)
def test_a_second_annotation_of_another_name_is_told(name: str, annotation: str, another: str, tmp_path: Path) -> None:
    """Nobody but the user can know which of them is right."""
    LAYOUTS[name](tmp_path)
    known = KNOWN[name]
    target = next(iter(known.targets), "")
    assert not known.find(tmp_path, target).problems
    first = next(path for path in sorted(tmp_path.rglob("*")) if path.name == annotation)
    (first.parent / another).write_bytes(first.read_bytes())
    assert any("has 2 annotations" in text and another in text for text in known.find(tmp_path, target).problems)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing raw", "Case01.mhd names the data file Case01.raw, which is missing; copy both files"),
        ("short raw", "Case01.raw is truncated or damaged: 100 bytes of "),
        ("label value", "label values [3] where the set has 0, 1"),
        ("other grid", "resample the labels"),
        ("no annotation", "Case01.mhd has no annotation"),
        ("no image", "Case01_segmentation.mhd has no image"),
        ("two annotations", "Case01.mhd has 2 annotations"),
        ("empty", "is empty"),
        ("one image twice", "Case00, Case01 are one and the same image"),
    ],
)
def test_a_bad_case_is_left_out_and_told(tmp_path: Path, kind: str, says: str) -> None:
    LAYOUTS["promise12"](tmp_path / "in")
    _spoil(tmp_path / "in", kind)
    outcome = call("prepare", "promise12", "--source", tmp_path / "in", "--out", tmp_path / "out")
    assert outcome.code == 1, outcome
    assert f"left out: {says}" in outcome.err or says in outcome.err
    assert "1 left out" in outcome.err
    dataset = PreparedDataset.open(tmp_path / "out")
    assert len(dataset.cases()) == 3
    assert says in dataset.manifest["left_out"][0]
    assert not (tmp_path / "out.unfinished").exists()


def test_repairing_a_case_moves_no_other(tmp_path: Path) -> None:
    LAYOUTS["promise12"](tmp_path / "in")
    whole = {case.id: case.split for case in prepared("promise12", tmp_path).cases()}
    _spoil(tmp_path / "in", "empty")
    rest = {case.id: case.split for case in prepared("promise12", tmp_path).cases()}
    assert rest.items() < whole.items()


# The command


def test_the_command_names_sets_options_and_remedies(tmp_path: Path) -> None:
    LAYOUTS["msd-prostate"](tmp_path / "in")
    archive = tarred(tmp_path / "in", tmp_path / "Task05_Prostate.tar")
    (tmp_path / "downloads").mkdir()
    archive.rename(tmp_path / "downloads/Task05_Prostate.tar")
    command = ["prepare", "msd-prostate", "--source", tmp_path / "downloads", "--out", tmp_path / "out"]
    outcome = call(*command, "--target", "gland", "--channel", "adc", "--test-fraction", "0.25")
    assert outcome.code == 0, outcome
    assert "4 cases" in outcome.out
    assert "structures: prostate" in outcome.out
    for wrong, says in (
        (["--target", "lobes"], "no target 'lobes'; choose zones or gland"),
        (["--channel", "t1"], "no channel 't1'; choose of t2, adc, or all"),
        (["--label", "1=prostate"], "labels of msd-prostate are known"),
        (["--modality", "CT"], "--modality is for folders of your own"),
        (["--spacing", "3,1,1"], "state their spacing"),
        (["--folds", "one"], "neither a number"),
    ):
        outcome = call(*command[:-1], tmp_path / "other", *wrong)
        assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome
        assert says in outcome.err
    missing = call("prepare", "msd-prostate", "--out", tmp_path / "other")
    assert missing.code == 2
    assert "pass --download, or get Task05_Prostate.tar from http://medicaldecathlon.com" in missing.err
    assert call("prepare", tmp_path / "in", "--target", "gland", "--out", tmp_path / "other").code == 2
    assert call("prepare", "promise12", "--source", tmp_path / "in", "--out", tmp_path / "other").code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "in", "out"]


def test_sets_are_listed_and_described() -> None:
    listed = call("sets")
    assert listed.code == 0
    assert all(name in listed.out for name in KNOWN)
    one = call("sets", "brats2021").out
    assert "licence: as stated by the publisher at" in one
    assert "login: registration" in one
    assert "target all: necrotic core" in one
    assert call("sets", "brats").code == 2
