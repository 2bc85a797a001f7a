"""Zoom-out-zoom-in: the reference's numbers, and the laws that windows and prompts keep."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_golden_segvol import model_of
from torch import Tensor, nn

from adaptmedseg.data.normalise import crop_slices, segvol_normalise
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.inference.settings import InferenceSettings
from adaptmedseg.inference.zoom import Region, Window, plan_zoom, prompt_in_window, true_extent, window_counts
from adaptmedseg.models.prompts import Prompts, StructurePrompt
from adaptmedseg.models.segvol import SegVol

PLAIN = InferenceSettings(bf16=False)


class Shifted(nn.Module):
    """A model whose logits are lower by a constant, as the reference's numbers were made."""

    def __init__(self, model: SegVol, shift: float):
        super().__init__()
        self.model, self.shift = model, shift

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        return self.model.embed(image, modalities)

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        return self.model.segment(embedding, prompts) - self.shift


@pytest.mark.golden
@pytest.mark.realdata
@pytest.mark.parametrize("kind", ["text", "text_box"])
@pytest.mark.parametrize("volume", ["ct", "mr"])
def test_zoom_agrees_with_the_reference(golden_dir: Path, shared_data: Path, volume: str, kind: str) -> None:
    spec = json.loads((golden_dir / "segvol-tiny.json").read_text(encoding="utf-8"))
    arrays = np.load(golden_dir / f"zoom-{volume}-{kind}.npz")
    path = (
        shared_data
        / "ct-mr"
        / json.loads((golden_dir / f"preprocess-{volume}.json").read_text(encoding="utf-8"))["image"]
    )
    normalised, crop = segvol_normalise(np.asarray(nib.load(path).dataobj, dtype=np.float32).transpose(2, 1, 0))
    image = np.ascontiguousarray(normalised[crop_slices(crop)])
    assert image.shape == tuple(arrays["shape"])
    model = Shifted(model_of(spec["config"], spec["salt"]), float(arrays["logit_shift"]))
    size = tuple(spec["config"]["spatial_size"])
    segmenter = CropSegmenter(model, size, "nearest-exact", torch.device("cpu"), PLAIN, lattice="region")
    segmenter.set_crop(image, "CT")
    box = None
    if kind == "text_box":  # the reference's box is in voxels of the view
        view_box = torch.from_numpy(arrays["box"]).reshape(2, 3)
        scale = torch.tensor(image.shape) / torch.tensor(size)
        box = (view_box + 0.5) * scale - 0.5
    (result,) = segmenter.segment([StructurePrompt("liver", box=box)], zoom=True)
    assert result.windows > 1
    assert int((result.logits > 0).sum()) == int(arrays["positive_voxels"])
    np.testing.assert_allclose(result.logits[::2, ::2, ::2], arrays["logits"], atol=1e-4, rtol=0)


class Threshold:
    """A model that says where its view is bright, and remembers what it was asked."""

    def __init__(self) -> None:
        self.encoded = 0
        self.asked: list[Prompts] = []

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        self.encoded += len(image)
        return image[:, 0].clone()

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        self.asked.append(prompts)
        return 20 * (embedding[prompts.image_index] - 0.5)


SIZE = (4, 8, 8)


def volume(shape: tuple[int, int, int], *blobs: tuple[slice, slice, slice]) -> np.ndarray:
    image = np.full(shape, 0.1, np.float32)
    for blob in blobs:
        image[blob] = 0.9
    return image


def segmenter_of(model: object, lattice: str = "volume", **chosen: int) -> CropSegmenter:
    return CropSegmenter(
        model, SIZE, "nearest-exact", torch.device("cpu"), InferenceSettings(bf16=False, **chosen), lattice
    )


BLOB = (slice(4, 9), slice(10, 17), slice(21, 30))  # its outermost voxels lie in view voxels that show it


@pytest.mark.parametrize("lattice", ["region", "volume"])
def test_the_second_look_has_the_volumes_own_resolution(lattice: str) -> None:
    image = volume((12, 24, 40), BLOB)
    segmenter = segmenter_of(Threshold(), lattice)
    segmenter.set_crop(image, "CT")
    (coarse,) = segmenter.segment([StructurePrompt("liver")])
    (fine,) = segmenter.segment([StructurePrompt("liver")], zoom=True)
    assert coarse.windows == 0
    assert not np.array_equal(coarse.logits > 0, image > 0.5)
    np.testing.assert_array_equal(fine.logits > 0, image > 0.5)


def test_windows_are_encoded_once_for_all_structures_and_questions() -> None:
    model = Threshold()
    segmenter = segmenter_of(model)
    segmenter.set_crop(volume((12, 24, 40), BLOB), "CT")
    first = [r.logits for r in segmenter.segment([StructurePrompt("liver")], zoom=True)]
    encoded = model.encoded
    names = ["liver", "spleen", "left kidney"]
    again = [r.logits for r in segmenter.segment([StructurePrompt(n) for n in names], zoom=True)]
    assert model.encoded == encoded
    assert all(np.array_equal(first[0], logits) for logits in again)


@pytest.mark.parametrize("chosen", [{"window_batch": 3}, {"cache_bytes": 1}])
def test_the_answer_depends_on_no_setting(chosen: dict[str, int]) -> None:
    image = np.random.default_rng(0).random((13, 29, 33), dtype=np.float32)
    answers = []
    for each in ({}, chosen):
        segmenter = segmenter_of(Threshold(), **each)
        segmenter.set_crop(image, "CT")
        answers.append(next(segmenter.segment([StructurePrompt("liver")], zoom=True)).logits)
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


def test_structures_asked_together_are_answered_as_alone(tiny_base: SegVol) -> None:
    image = np.random.default_rng(1).random((20, 50, 60), dtype=np.float32)
    segmenter = CropSegmenter(tiny_base, (8, 32, 32), "nearest-exact", torch.device("cpu"), PLAIN)
    segmenter.set_crop(image, "CT")
    box = torch.tensor([[2.0, 5.0, 6.0], [14.0, 40.0, 50.0]])
    point = torch.tensor([[9.0, 20.0, 30.0]])
    prompts = [
        StructurePrompt("liver"),
        StructurePrompt("spleen", box=box),
        StructurePrompt("prostate", text=False, points=point, labels=torch.tensor([1])),
        StructurePrompt("bladder"),
    ]
    together = list(segmenter.segment(prompts, zoom=True))
    for prompt, result in zip(prompts, together, strict=True):
        (alone,) = segmenter.segment([prompt], zoom=True)
        np.testing.assert_allclose(result.logits, alone.logits, atol=1e-5)
        assert result.windows == alone.windows


def test_nothing_found_is_said_and_the_coarse_look_stands() -> None:
    segmenter = segmenter_of(Threshold())
    segmenter.set_crop(volume((12, 24, 40)), "CT")
    (result,) = segmenter.segment([StructurePrompt("liver")], zoom=True)
    assert not result.found
    assert result.windows == 0
    assert (result.logits < 0).all()


def test_a_volume_smaller_than_the_window_keeps_its_prompts_in_place() -> None:
    model = Threshold()
    segmenter = segmenter_of(model)
    image = volume((2, 5, 40), (slice(0, 1), slice(1, 4), slice(2, 6)))
    segmenter.set_crop(image, "CT")
    box = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, 5.0]])
    (result,) = segmenter.segment([StructurePrompt("liver", box=box)], zoom=True)
    np.testing.assert_array_equal(result.logits > 0, image > 0.5)
    assert result.windows == 1
    # Two rows of zeros stand before the volume along h and one slice along d: the box moves with them.
    assert model.asked[-1].boxes is not None
    np.testing.assert_allclose(model.asked[-1].boxes[0], [[1, 2, 2], [1, 4, 5]])


def test_a_window_is_asked_what_reaches_into_it() -> None:
    window = Window((0, 8, 8), Region((0, 0, 0), (12, 24, 40)))
    foreground = torch.zeros(12, 24, 40, dtype=torch.bool)
    foreground[1:3, 9:12, 14:20] = True
    points = torch.tensor([[1.0, 10.0, 9.0], [1.0, 10.0, 30.0]])
    clicked = StructurePrompt("liver", False, points, torch.tensor([1, 0]))
    asked = prompt_in_window(clicked, window, SIZE, foreground, fits=False)
    assert asked is not None
    assert asked.points is not None
    assert asked.labels is not None
    assert asked.box is not None
    assert asked.points.tolist() == [[1, 2, 1]]
    assert asked.labels.tolist() == [1]
    assert asked.box.tolist() == [[1, 1, 6], [2, 3, 7]]
    elsewhere = Window((8, 0, 0), window.bounds)
    assert prompt_in_window(clicked, elsewhere, SIZE, foreground, fits=False) is None
    named = StructurePrompt("liver", True, points, torch.tensor([1, 0]))
    assert prompt_in_window(named, elsewhere, SIZE, foreground, fits=False) == StructurePrompt("liver")


@st.composite
def regions(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], Region]:
    shape, size, start, stop = [], [], [], []
    for _ in range(3):
        full, window = draw(st.integers(1, 40)), draw(st.integers(1, 16))
        low = draw(st.integers(0, full - 1))
        shape.append(full)
        size.append(window)
        start.append(low)
        stop.append(draw(st.integers(low + 1, full)))
    return tuple(shape), tuple(size), Region(tuple(start), tuple(stop))


def blob_of(shape: tuple[int, ...], region: Region) -> torch.Tensor:
    foreground = torch.zeros(shape, dtype=torch.bool)
    foreground[region.slices] = True
    return foreground


@settings(max_examples=60, deadline=None)
@given(case=regions(), lattice=st.sampled_from(["region", "volume"]))
def test_windows_cover_the_foreground_and_cut_what_lies_there(case: tuple, lattice: str) -> None:
    shape, size, blob = case
    image = torch.arange(1, int(np.prod(shape)) + 1).reshape(shape)
    plan = plan_zoom(blob_of(shape, blob), size, lattice)
    assert plan is not None
    assert plan.fits == all(n <= s for n, s in zip(blob.shape, size, strict=True))
    seen = torch.zeros(shape, dtype=torch.bool)
    assert len(set(plan.windows)) == len(plan.windows)
    for window in plan.windows:
        cut = window.cut(image, size)
        assert cut.shape == size
        inside = window.inside(size)
        seen[inside.slices] = True
        assert (cut > 0).sum() == int(np.prod(inside.shape))
        local = tuple(slice(a - o, b - o) for a, b, o in zip(inside.start, inside.stop, window.start, strict=True))
        assert torch.equal(cut[local], image[inside.slices])
    assert seen[plan.region.slices].all()
    assert seen[blob.slices].all()
    counts = window_counts(plan.windows, plan.region, size)
    assert all((count > 0).all() for count in counts)


@settings(max_examples=60, deadline=None)
@given(case=regions())
def test_windows_of_the_volume_lie_on_one_lattice(case: tuple) -> None:
    shape, size, blob = case
    plan = plan_zoom(blob_of(shape, blob), size, "volume")
    assert plan is not None
    for window in plan.windows:
        for start, n, s in zip(window.start, shape, size, strict=True):
            assert start % max(s // 4, 1) == 0 or start == n - s or n < s


@settings(max_examples=60, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), share=st.sampled_from([0.0, 0.01, 0.1, 1.0]), seed=st.integers(0, 99))
def test_the_extent_is_that_of_all_true_voxels(shape: tuple[int, int, int], share: float, seed: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(seed).random(shape) < share)
    inside = mask[:, ::2, 1:]  # not contiguous, as the part of a volume in a window
    for part in (mask, inside):
        where = part.nonzero()
        expected = [(int(a.min()), int(a.max())) for a in where.T] if len(where) else None
        assert true_extent(part) == expected


@settings(max_examples=60, deadline=None)
@given(low=st.integers(0, 90), extent=st.integers(1, 16))
def test_a_structure_of_half_a_window_needs_one(low: int, extent: int) -> None:
    blob = Region((low, low, low), (low + extent, low + extent, low + extent))
    plan = plan_zoom(blob_of((110, 110, 110), blob), (32, 32, 32), "volume")
    assert plan is not None
    assert len(plan.windows) == 1


def test_an_empty_foreground_has_no_plan() -> None:
    assert plan_zoom(torch.zeros(8, 8, 8, dtype=torch.bool), (4, 4, 4), "volume") is None


def test_a_box_counts_in_all_windows_of_a_structure_that_fits_into_one() -> None:
    model = Threshold()
    segmenter = segmenter_of(model)
    image = volume((12, 24, 40), (slice(4, 6), slice(6, 12), slice(5, 10)))
    segmenter.set_crop(image, "CT")
    box = torch.tensor([[4.0, 6.0, 5.0], [5.0, 11.0, 9.0]])
    (result,) = segmenter.segment([StructurePrompt("liver", box=box)], zoom=True)
    assert result.windows > 1
    for asked in model.asked[1:]:
        assert asked.boxes is not None
        assert asked.boxes[0, 0, 1] <= asked.boxes[0, 1, 1]
    np.testing.assert_array_equal(result.logits > 0, image > 0.5)


def test_a_task_alone_is_asked_in_windows_too() -> None:
    model = Threshold()
    segmenter = segmenter_of(model)
    segmenter.set_crop(volume((12, 24, 40), BLOB), "CT")
    (result,) = segmenter.segment([StructurePrompt("liver", text=False)], zoom=True)
    assert result.windows > 0
    assert len(model.asked) == 1 + result.windows
