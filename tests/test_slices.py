"""Sets of labelled slices: of prepared volumes and of pictures, and what is said of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from adaptmedseg.preprocessing.volume_slices import SliceRule
from PIL import Image
from sam_cases import picture
from small_cases import call, small_folder

from adaptmedseg.data.pictures.dataset import SliceDataset
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.data.prepared.manifest import MANIFEST
from adaptmedseg.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("volumes")
    small_folder(root / "raw", 4)
    outcome = call(
        "prepare", root / "raw", "--out", root / "prepared", "--modality", "T2 MRI", "--label", "1=prostate",
        "--label", "2=bladder", "--test-fraction", "0.25", "--val-fraction", "0.25",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return root / "prepared"


def picture_folder(root: Path, count: int = 5) -> Path:
    """images/ and masks/ of `count` pictures with one bright block each."""
    for seed in range(count):
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "masks").mkdir(exist_ok=True)
        mask = np.zeros((40, 50), np.uint8)
        mask[8 + seed : 24, 10:30] = 255
        Image.fromarray(picture(40, 50, seed)).save(root / "images" / f"photo_{seed}.png")
        Image.fromarray(mask).save(root / "masks" / f"photo_{seed}_mask.png")
    return root


# Of volumes -------------------------------------------------------------------------------


def test_slices_hold_the_volumes_voxels(prepared: Path, tmp_path: Path) -> None:
    """Without resampling, a slice is the volume's plane, rows and columns reversed."""
    outcome = call("slices", prepared, "--out", tmp_path / "s", "--least", "1", "--spacing", "1.5")
    assert outcome.code == 0, outcome.err
    volumes = {case.id: case for case in PreparedDataset.open(prepared).cases()}
    dataset = SliceDataset.open(tmp_path / "s")
    assert dataset.structures == ("prostate", "bladder")
    assert dataset.damaged() == []
    seen = 0
    for item in dataset.items():
        case, index = volumes[item.source["case"]], item.source["index"]
        assert (item.split, item.patient, item.modality) == (case.split, case.patient, case.modality)
        assert item.image_sha256 == case.sources["image"]["sha256"]
        assert item.spacing == (1.5, 1.5)
        np.testing.assert_array_equal(item.bits(), case.labels()[index, ::-1, ::-1])
        np.testing.assert_allclose(item.image()[..., 0], case.image()[index, ::-1, ::-1] * 255, atol=0.51)
        for name in case.annotated:
            np.testing.assert_array_equal(item.mask(name), case.mask(name)[index, ::-1, ::-1])
            assert item.pixels[name] == item.mask(name).sum()
            seen += item.pixels[name]
    assert seen == sum(sum(case.voxels_in_crop.values()) for case in volumes.values())


def test_planes_through_thick_slices_get_square_pixels(prepared: Path, tmp_path: Path) -> None:
    outcome = call("slices", prepared, "--out", tmp_path / "s", "--axis", "all", "--middle", "2", "--least", "1")
    assert outcome.code == 0, outcome.err
    dataset = SliceDataset.open(tmp_path / "s")
    assert {item.source["axis"] for item in dataset.items()} == {"d", "h", "w"}
    for item in dataset.items():
        assert item.spacing == pytest.approx((1.5, 1.5), abs=1e-4)
    case = PreparedDataset.open(prepared).cases()[0]
    coronal = next(item for item in dataset.items() if item.source["axis"] == "h" and item.source["case"] == case.id)
    assert coronal.shape == (round(case.shape[0] * 4 / 1.5), case.shape[2])


def test_rules_say_which_slices() -> None:
    assert list(SliceRule(every=3).indices(8)) == [0, 3, 6]
    assert list(SliceRule(middle=2).indices(8)) == [3, 4]
    assert list(SliceRule(middle=9).indices(4)) == [0, 1, 2, 3]


def test_foreground_filter_and_structures(prepared: Path, tmp_path: Path) -> None:
    call("slices", prepared, "--out", tmp_path / "s", "--structures", "bladder", "--least", "30", "--every", "2")
    dataset = SliceDataset.open(tmp_path / "s")
    assert dataset.structures == ("bladder",)
    assert all(item.pixels["bladder"] >= 30 and item.source["index"] % 2 == 0 for item in dataset.items())
    with pytest.raises(ValueError, match="does not annotate 'prostate'"):
        dataset.items()[0].mask("prostate")


WRONG_OPTIONS = {
    "both": (["--every", "2", "--middle", "1"], "--every and --middle exclude each other"),
    "axis": (["--axis", "x"], "--axis x: choose one of axial, coronal, sagittal, all"),
    "for pictures": (["--threshold", "0.4"], "--threshold: is for pictures"),
    "structure": (["--structures", "liver"], "has no 'liver'; it has prostate, bladder"),
    "unknown structure": (["--structures", "nose"], "has no 'nose'; it has prostate, bladder"),
    "spacing": (["--spacing", "400"], "of a structure; lower --least, or --spacing, 400 mm a pixel"),
    "nothing": (["--least", "100000"], "no slice shows 100000 pixels"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_wrong_options_for_volumes(prepared: Path, tmp_path: Path, case: str) -> None:
    options, message = WRONG_OPTIONS[case]
    outcome = call("slices", prepared, "--out", tmp_path / "s", *options)
    assert outcome.code == 2
    assert message in outcome.err
    assert list(tmp_path.iterdir()) == []


# Of pictures ------------------------------------------------------------------------------


def test_pictures_with_masks_become_a_set(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "raw")
    outcome = call("slices", root, "--out", tmp_path / "s", "--structures", "lesion", "--test-fraction", "0.4")
    assert outcome.code == 0, outcome.err
    dataset = SliceDataset.open(tmp_path / "s")
    assert dataset.structures == ("lesion",)
    assert [len(dataset.items(split)) for split in ("train", "val", "test")] == [2, 1, 2]  # type: ignore[arg-type]
    for seed, item in enumerate(dataset.items()):
        np.testing.assert_array_equal(item.image(), picture(40, 50, seed))
        assert item.mask("lesion").sum() == (16 - seed) * 20
        assert item.spacing is None


def test_label_maps_named_on_the_command_line(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "raw", 3)
    labels = np.zeros((40, 50), np.uint8)
    labels[:10], labels[20:30] = 1, 7
    for seed in range(3):
        Image.fromarray(labels).save(root / "masks" / f"photo_{seed}_mask.png")
    outcome = call("slices", root, "--out", tmp_path / "s", "--label", "1=liver", "--label", "7=my own thing")
    assert outcome.code == 0, outcome.err
    item = SliceDataset.open(tmp_path / "s").items()[0]
    assert item.annotated == ("liver", "my own thing")
    np.testing.assert_array_equal(item.mask("my own thing"), labels == 7)


def test_one_bad_picture_is_left_out_and_told(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "raw")
    (root / "images" / "photo_1.png").write_bytes((root / "images" / "photo_1.png").read_bytes()[:900])
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(root / "masks" / "photo_2_mask.png")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(root / "masks" / "photo_3_mask.png")
    outcome = call("slices", root, "--out", tmp_path / "s")
    assert outcome.code == 1
    assert "photo_1.png: is truncated or damaged" in outcome.err
    assert "photo_2_mask.png: is empty, so that it annotates nothing" in outcome.err
    assert "photo_3_mask.png: is 5×4 pixels and its picture 50×40" in outcome.err
    assert [item.id for item in SliceDataset.open(tmp_path / "s").items()] == ["photo_0", "photo_4"]
    again = call("slices", root, "--out", tmp_path / "s", "--overwrite", "--absent", "empty")
    assert again.code == 1
    items = {item.id: item for item in SliceDataset.open(tmp_path / "s").items()}
    assert items["photo_2"].pixels == {"foreground": 0}
    assert items["photo_2"].present() == []


def test_masks_beside_their_pictures(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b", "c")):
        Image.fromarray(picture(20, 20, seed)).save(tmp_path / f"{name}.png")
        Image.fromarray(np.full((20, 20), 255, np.uint8)).save(tmp_path / f"{name}.ah.png")
    outcome = call("slices", tmp_path, "--out", tmp_path / "s", "--mask-ending", ".ah", "--val-fraction", "0")
    assert outcome.code == 0, outcome.err
    assert [item.id for item in SliceDataset.open(tmp_path / "s").items()] == ["a", "b", "c"]


def test_nothing_that_pairs(tmp_path: Path) -> None:
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.png")
    for source, message in ((tmp_path, "holds no picture with a mask"), (tmp_path / "nowhere", "is no folder")):
        outcome = call("slices", source, "--out", tmp_path / "s")
        assert outcome.code == 2
        assert message in outcome.err
    outcome = call("slices", tmp_path, "--out", tmp_path / "s", "--axis", "h")
    assert "--axis: is for volumes" in outcome.err


def test_names_that_do_not_pair_are_told(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "raw", 3)
    (root / "masks" / "photo_0_mask.png").rename(root / "masks" / "other_mask.png")
    outcome = call("slices", root, "--out", tmp_path / "s", "--val-fraction", "0")
    assert outcome.code == 0, outcome.err
    assert "pictures without a mask are passed over: 1 (photo_0.png)" in outcome.err
    assert "masks without a picture are passed over: 1 (other_mask.png)" in outcome.err
    for path in (root / "masks").iterdir():
        path.rename(path.with_name(path.name.replace("_mask", "_pixels0")))
    outcome = call("slices", root, "--out", tmp_path / "n")
    assert outcome.code == 2
    assert "here it seems to be --mask-ending=_pixels0)" in outcome.err


def test_names_that_pair_twice_are_refused(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "raw", 2)
    mask = root / "masks" / "photo_0_mask.png"
    Image.open(mask).save(root / "masks" / "photo_0_mask.bmp")
    outcome = call("slices", root, "--out", tmp_path / "s")
    assert outcome.code == 2
    assert "photo_0.png: has two masks, masks/photo_0_mask.bmp and masks/photo_0_mask.png" in outcome.err
    (root / "masks" / "photo_0_mask.bmp").unlink()
    Image.open(root / "images" / "photo_0.png").save(root / "images" / "photo_0.jpg")
    outcome = call("slices", root, "--out", tmp_path / "s")
    assert "photo_0.jpg and photo_0.png would both be called photo_0; rename one" in outcome.err


def test_labels_that_name_nothing_are_told(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "raw", 1)
    pair = {"image": "images/photo_0.png", "label": "masks/photo_0_mask.png"}
    document = {"training": [pair], "labels": ["background", "disc"]}
    (root / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    outcome = call("slices", root, "--out", tmp_path / "s")
    assert outcome.code == 2
    assert 'dataset.json: names no labels under \'labels\'; write {"1": "NAME"}' in outcome.err


def test_too_many_labels_are_told_before_anything_is_read(tmp_path: Path) -> None:
    labels = [word for value in range(1, 18) for word in ("--label", f"{value}=part {value}")]
    outcome = call("slices", picture_folder(tmp_path / "raw"), "--out", tmp_path / "s", *labels)
    assert outcome.code == 2
    assert "17 structures are more than a set of slices can hold (16); name fewer values" in outcome.err


def test_an_image_of_another_size_than_its_mask_is_not_used(tmp_path: Path) -> None:
    assert call("slices", picture_folder(tmp_path / "raw"), "--out", tmp_path / "s").code == 0
    item = SliceDataset.open(tmp_path / "s").items()[0]
    Image.open(tmp_path / "s" / "images" / f"{item.id}.png").resize((9, 7)).save(
        tmp_path / "s" / "images" / f"{item.id}.png"
    )
    with pytest.raises(UserError, match="is 9×7 pixels, and was 50×40 when the set was made; copy the folder again"):
        item.image()
    assert item.bits().shape == (40, 50)


def test_one_picture_under_two_names_is_never_on_both_sides(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "raw", 6)
    for part, ending in (("images", ""), ("masks", "_mask")):
        for number in range(6):
            (root / part / f"copy_{number}{ending}.png").write_bytes(
                (root / part / f"photo_{number}{ending}.png").read_bytes()
            )
    outcome = call("slices", root, "--out", tmp_path / "s", "--test-fraction", "0.5")
    assert outcome.code == 0, outcome.err
    assert "one patient: 6 (photo_0.png as copy_0.png, photo_1.png as copy_1.png, " in outcome.err
    items = {item.id: item for item in SliceDataset.open(tmp_path / "s").items()}
    for number in range(6):
        copy, photo = items[f"copy_{number}"], items[f"photo_{number}"]
        assert (copy.patient, copy.split) == (photo.patient, photo.split)


def test_a_set_of_slices_is_no_folder_of_pictures(tmp_path: Path) -> None:
    assert call("slices", picture_folder(tmp_path / "raw"), "--out", tmp_path / "s").code == 0
    outcome = call("slices", tmp_path / "s", "--out", tmp_path / "again")
    assert outcome.code == 2
    assert "is a set of slices already" in outcome.err
    volumes = call("train", "adapt", "--data", tmp_path / "s", "--out", tmp_path / "run")
    assert "is no manifest of a prepared data set (its format is 'adaptmedseg-slices')" in volumes.err


def test_a_damaged_set_is_told(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "raw")
    call("slices", root, "--out", tmp_path / "s")
    for path, text, message in (
        (tmp_path / "s" / MANIFEST, "{", "is damaged"),
        (tmp_path / "s" / MANIFEST, json.dumps({"format": "other"}), "is no manifest of a set of slices"),
        (tmp_path / "s" / MANIFEST, json.dumps({"format": "adaptmedseg-slices", "version": 9}), "has version 9"),
        (tmp_path / "s" / MANIFEST, json.dumps({"format": "adaptmedseg-slices", "version": 1}), "is damaged"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            SliceDataset.open(tmp_path / "s")
    with pytest.raises(UserError, match="is no set of slices"):
        SliceDataset.open(tmp_path)


# Real data --------------------------------------------------------------------------------


@pytest.mark.realdata
def test_abdominal_slices_with_thirteen_organs(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "btcv-ct-slices"
    outcome = call("slices", source, "--out", tmp_path / "s", "--patient-pattern", r"ABD_(\d+)")
    assert outcome.code == 0, outcome.err
    dataset = SliceDataset.open(tmp_path / "s")
    assert len(dataset.structures) == 13
    assert {"right kidney", "left kidney", "liver", "pancreas"} <= set(dataset.structures)
    splits = {item.patient: {other.split for other in dataset.items() if other.patient == item.patient}
              for item in dataset.items()}  # fmt: skip
    assert len(splits) == 8
    assert all(len(split) == 1 for split in splits.values())


@pytest.mark.realdata
def test_retina_and_infrared(shared_data: Path, tmp_path: Path) -> None:
    retina = call("slices", shared_data / "stare", "--out", tmp_path / "r", "--structures", "vessel",
                  "--mask-ending", ".ah")  # fmt: skip
    assert retina.code == 0, retina.err
    item = SliceDataset.open(tmp_path / "r").items()[0]
    assert item.shape == (605, 700)
    assert 0.05 < item.mask("vessel").mean() < 0.2
    infrared = call("slices", shared_data / "sirst", "--out", tmp_path / "i", "--mask-ending", "_pixels0")
    assert infrared.code == 0, infrared.err
    shares = [i.pixels["foreground"] / (i.shape[0] * i.shape[1]) for i in SliceDataset.open(tmp_path / "i").items()]
    assert 2e-4 < np.median(shares) < 6e-4  # a twenty-fifth of a percent
