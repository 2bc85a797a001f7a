"""The prepared format: read by its page alone, cut into windows, checked against hashes, and refused when old."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from adaptmedseg.preprocessing.folder import prepare_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_cases import AFFINE, call, save, small_folder, small_image, small_labels

from adaptmedseg.data.export import label_values, scanner_intensities, scanner_labels
from adaptmedseg.data.grid import Grid, Volume
from adaptmedseg.data.labels import bit_dtype
from adaptmedseg.data.normalise import SEGVOL, Normalisation, normalised_crop, segvol_normalise
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset, write_case, write_prepared
from adaptmedseg.data.prepared.arrays import FINEST, encode_intensities
from adaptmedseg.data.prepared.manifest import case_of
from adaptmedseg.data.prepared.masks import merge_masks, pack_masks, unpack_masks
from adaptmedseg.data.volume import read_image, read_labels, to_grid
from adaptmedseg.errors import UserError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "prepared-format.md"
LABELS = {1: "liver", 2: "spleen", "1+2": "prostate"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("in"), 3)


@pytest.fixture(scope="module")
def dataset(source: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    out = tmp_path_factory.mktemp("out") / "prepared"
    return prepare_folder(source, out, name="small", modality="T2", labels=LABELS, val_fraction=0)


def test_the_page_alone_leads_to_the_voxels(dataset: PreparedDataset, source: Path) -> None:
    """Runs the page's own example, which knows nothing of this project."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert "adaptmedseg" not in code
    found: dict[str, Any] = {}
    exec(code.replace('"prepared/mine"', repr(str(dataset.folder))), found)
    case = found["case"]
    image = read_image(source / "images" / f"{case['id']}.nii.gz")
    labels = read_labels(source / "labels" / f"{case['id']}.nii.gz")
    box = tuple(slice(*pair) for pair in case["crop"])
    np.testing.assert_array_equal(found["image"], image.data[box])
    np.testing.assert_array_equal(found["mask"], labels.data[box] == 1)
    np.testing.assert_allclose(found["normalised"], segvol_normalise(image.data)[0][box], atol=1e-6)
    np.testing.assert_allclose(found["affine"], image.grid.affine)
    assert found["full"].shape == image.grid.shape


def test_the_page_names_every_key(dataset: PreparedDataset) -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = {*dataset.manifest["cases"][0], "format", "version", "structures", "label_values", "modalities", "cases"}
    missing = sorted(key for key in named if f"`{key}`" not in text)
    assert not missing


def test_structures_may_overlap_and_every_voxel_comes_back(dataset: PreparedDataset, source: Path) -> None:
    case = dataset.cases()[0]
    np.testing.assert_array_equal(case.mask("prostate"), case.mask("liver") | case.mask("spleen"))
    assert case.labels().dtype == np.uint8
    volume = read_image(source / "images" / f"{case.id}.nii.gz")
    expected, crop = normalised_crop(volume)
    assert crop == case.crop
    np.testing.assert_allclose(case.image(), expected, atol=1e-6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_window_is_the_same_box_of_the_whole(dataset: PreparedDataset, data: st.DataObject) -> None:
    case = dataset.cases()[0]
    corner, size = (
        tuple(data.draw(st.integers(low, high)) for low, high in bounds) for bounds in ([(-9, 30)] * 3, [(1, 12)] * 3)
    )
    image, masks = case.window((corner[0], corner[1], corner[2]), (size[0], size[1], size[2]), case.annotated)
    margin = 50
    box = tuple(slice(margin + low, margin + low + length) for low, length in zip(corner, size, strict=True))
    np.testing.assert_allclose(image, np.pad(case.image(), margin)[box], atol=1e-6)
    for name, mask in zip(case.annotated, masks, strict=True):
        np.testing.assert_array_equal(mask, np.pad(case.mask(name), margin)[box])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_masks_come_back_whatever_their_shape(data: st.DataObject) -> None:
    """Against the arrays that were packed: any overlap, any region, structures without a voxel among them."""
    shape = tuple(data.draw(st.integers(1, 20)) for _ in range(3))
    count = data.draw(st.integers(1, 10))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    names = [f"s{bit}" for bit in range(count)]
    density = rng.choice([0, 0.002, 0.1, 0.9], count)
    masks = np.stack([rng.random(shape) < share for share in density])
    bits = np.zeros(shape, bit_dtype(count))
    for bit, mask in enumerate(masks):
        bits[mask] |= bits.dtype.type(1 << bit)
    packed, places, voxels = pack_masks(bits, names)
    assert voxels == {name: mask.sum() for name, mask in zip(names, masks, strict=True)}
    assert set(places) == {name for name, mask in zip(names, masks, strict=True) if mask.any()}
    d, h, w = (slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in shape)
    wanted = names[::-2]
    expected = masks[::-1][::2][:, d, h, w]
    np.testing.assert_array_equal(unpack_masks(packed, places, wanted, (d, h, w)), expected)
    np.testing.assert_array_equal(merge_masks(packed, places, names, bits.shape), bits)


def test_no_window_of_a_corrected_bias_field(dataset: PreparedDataset) -> None:
    with pytest.raises(ValueError, match="whole crop"):
        dataset.cases()[0].window((0, 0, 0), (2, 2, 2), [], Normalisation(n4=True))


@pytest.mark.parametrize(
    ("image", "dtype", "exact"),
    [
        (np.array([-1024.0, 0, 3071]), np.int16, True),
        (np.array([0.0, 40_000]), np.uint16, True),
        (np.linspace(-1, 1, 50), np.uint16, False),
        (np.array([0.0, 0.001, 0.002, 1e6]), np.float32, True),
        (np.array([0.0, 1e7]), np.uint16, False),
    ],
)
def test_intensities_are_stored_in_the_fewest_bits_that_hold_them(image: np.ndarray, dtype: type, exact: bool) -> None:
    image = image.astype(np.float32)
    clip = 0.002 if image.max() == 1e6 else float(image.max() - image.min())
    stored, scale = encode_intensities(image, clip)
    assert stored.dtype == dtype
    np.testing.assert_allclose(scale.to_units(stored), image, atol=0 if exact else clip / FINEST, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3), st.integers(0, 2**31))
def test_geometry_goes_through_preparing_and_back(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], signs: tuple[int, ...], seed: int
) -> None:
    """Whatever the orientation, a mark in the file is found again at the same voxel of the file."""
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("case")
    affine = np.eye(4)
    affine[:3, :3] = np.diag([0.7, 1.1, 2.5])[:, order] * np.array(signs)
    array = np.zeros((9, 8, 7), np.int16)
    array[2:8, 1:7, 1:6] = rng.integers(50, 900, (6, 6, 5))
    labels = np.zeros(array.shape, np.uint8)
    labels[tuple(rng.integers(2, 6, 3))] = 1
    volume = read_image(save(folder / "a.nii", array, affine))
    marks = read_labels(save(folder / "b.nii", labels, affine))
    entry = write_case(folder / "cases" / "x", volume, marks.data, ["liver"])
    rest = {"id": "x", "patient": "x", "site": "s", "modality": "CT", "annotated": ["liver"], "voxels": {"liver": 1}}
    case = case_of({**entry, **rest, "split": "train", "fold": None, "sources": {}}, folder, ("liver",))
    lost = 1 - case.voxels_in_crop["liver"]
    back = to_grid(scanner_labels(case, label_values([case], ["liver"])), case.grid)
    assert int((back != labels).sum()) == lost
    inside = to_grid(scanner_intensities(case), case.grid)
    np.testing.assert_array_equal(inside[inside > 0], array[inside > 0])


def test_two_writings_give_the_same_bytes_and_hashes_find_changes(source: Path, tmp_path: Path) -> None:
    made = [prepare_folder(source, tmp_path / n, name="s", modality="T2", labels=LABELS, val_fraction=0) for n in "ab"]
    for path in sorted((tmp_path / "a").rglob("*.*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    assert made[0].damaged() == []
    target = tmp_path / "a" / "cases" / "case_0" / "image.npy"
    changed = bytearray(target.read_bytes())
    changed[-1] ^= 1
    target.write_bytes(changed)
    (sentence,) = made[0].damaged()
    assert str(target) in sentence
    outcome = call("check", tmp_path / "a")
    assert (outcome.code, "image.npy is not what was written" in outcome.out) == (1, True)
    assert call("check", tmp_path / "b").code == 0


def test_an_old_or_cut_folder_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_folder(source, out, name="s", modality="T2", labels=LABELS, val_fraction=0)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    (out / "manifest.json").write_text(json.dumps({**manifest, "version": 2}), encoding="utf-8")
    with pytest.raises(UserError, match=r"version 2 and this release reads 3; prepare the data again"):
        PreparedDataset.open(out)
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    masks = out / "cases" / "case_1" / "masks.npy"
    masks.write_bytes(masks.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"masks\.npy has \d+ bytes where the manifest says"):
        PreparedDataset.open(out)
    case = PreparedDataset(out, manifest).cases()[1]
    with pytest.raises(UserError, match=r"masks\.npy is damaged"):
        case.labels()
    np.save(masks, np.zeros((2, 2), np.float32))
    with pytest.raises(UserError, match=r"masks\.npy holds no masks but float32 of shape \(2, 2\)"):
        case.mask("liver")


# Export -----------------------------------------------------------------------------------


def test_exported_nifti_prepares_to_the_same_voxels(dataset: PreparedDataset, source: Path, tmp_path: Path) -> None:
    outcome = call("export", dataset.folder, "--out", tmp_path / "back")
    assert outcome.code == 0, outcome.err
    written = nib.load(tmp_path / "back" / "images" / "case_0.nii.gz")
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)
    assert written.get_data_dtype() == np.int16
    inside = np.asarray(written.dataobj)
    np.testing.assert_array_equal(inside[inside > inside.min()], small_image(0)[inside > inside.min()])
    again = prepare_folder(tmp_path / "back", tmp_path / "again", name="again", val_fraction=0)
    assert set(again.structures) == set(dataset.structures)
    for first, second in zip(dataset.cases(), again.cases(), strict=True):
        for name in dataset.structures:
            np.testing.assert_array_equal(first.mask(name), second.mask(name))


def test_exported_nnunet_holds_splits_and_only_whole_annotations(source: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "images" / "extra.nii.gz", small_image(9))
    save(tmp_path / "in" / "labels" / "extra.nii.gz", (small_labels(9) == 1).astype(np.uint8))
    for seed in range(4):
        save(tmp_path / "in" / "images" / f"c{seed}.nii.gz", small_image(seed))
        save(tmp_path / "in" / "labels" / f"c{seed}.nii.gz", small_labels(seed))
    names = {1: "liver", 2: "spleen"}
    prepare_folder(tmp_path / "in", tmp_path / "p", name="My set", modality="CT", labels=names, folds=2)
    outcome = call("export", tmp_path / "p", "--to", "nnunet", "--out", tmp_path / "raw", "--number", "7")
    assert outcome.code == 0, outcome.err
    assert "left out, for they do not annotate all structures: extra" in outcome.out
    folder = tmp_path / "raw" / "Dataset007_Myset"
    described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert described["labels"] == {"background": 0, "liver": 1, "spleen": 2}
    assert (described["channel_names"], described["numTraining"]) == ({"0": "CT"}, 4)
    assert sorted(path.name for path in (folder / "imagesTr").iterdir()) == [f"c{i}_0000.nii.gz" for i in range(4)]
    splits = json.loads((folder / "splits_final.json").read_text(encoding="utf-8"))
    assert [sorted(part["train"] + part["val"]) for part in splits] == [["c0", "c1", "c2", "c3"]] * 2
    np.testing.assert_array_equal(np.asarray(nib.load(folder / "labelsTr" / "c0.nii.gz").dataobj), small_labels(0))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--to", "dicom"], "choose nifti or nnunet"),
        (["--structures", "wing"], "Unknown structure"),
        (["--structures", "pancreas"], "holds no structure 'pancreas'"),
    ],
)
def test_what_cannot_be_exported(dataset: PreparedDataset, tmp_path: Path, arguments: list[str], says: str) -> None:
    outcome = call("export", dataset.folder, "--out", tmp_path / "out", *arguments)
    assert (outcome.code, says in outcome.err) == (2, True), outcome.err
    assert not (tmp_path / "out").exists()


def test_export_leaves_other_folders_alone(dataset: PreparedDataset, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious", encoding="utf-8")
    outcome = call("export", dataset.folder, "--out", tmp_path)
    assert (outcome.code, "holds files already" in outcome.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_written_anew_is_read_anew(tmp_path: Path) -> None:
    """Files stay open between reads; a new file of the same name must not be mistaken for the old one."""
    affine = np.eye(4)
    shown: list[np.ndarray] = []
    for seed in range(2):
        image = np.random.default_rng(seed).integers(1, 99, (4, 5, 6)).astype(np.float32)
        volume = Volume(image, (1.0, 1.0, 1.0), Grid((6, 5, 4), affine), tmp_path / "x.nii")

        def write(partial: Path, volume: Volume = volume) -> dict[str, Any]:
            entry = write_case(partial / "cases" / "x", volume, np.ones((4, 5, 6), np.uint8), ["liver"])
            rest = {"id": "x", "patient": "x", "site": "s", "modality": "CT", "annotated": ["liver"], "sources": {}}
            case = {**entry, **rest, "voxels": {"liver": 120}, "split": "train", "fold": None}
            return {"name": "n", "structures": ["liver"], "modalities": ["CT"], "cases": [case]}

        case: PreparedCase = write_prepared(tmp_path / "out", write, overwrite=True).cases()[0]
        shown.append(case.image(SEGVOL))
        assert case.labels().all()
    assert shown[0].shape != shown[1].shape or not np.array_equal(*shown)
