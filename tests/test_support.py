"""Support sets: what is looked at, how it is calibrated, what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sam_cases import TINY_SAM, picture
from scipy.optimize import minimize

from adaptmedseg.data.overlap import dice
from adaptmedseg.data.pictures.planes import Planes
from adaptmedseg.errors import UserError
from adaptmedseg.inference.support.calibration import RIDGE, Sampled, calibrate, sample_pixels
from adaptmedseg.inference.support.consistency import neighbours_agree
from adaptmedseg.inference.support.extent import Extent
from adaptmedseg.inference.support.filters import local_features
from adaptmedseg.inference.support.frozen import FrozenSam
from adaptmedseg.inference.support.jitter import jittered
from adaptmedseg.inference.support.prompting import parts_of
from adaptmedseg.inference.support.segmenter import SupportAnswer, SupportSegmenter, label_map
from adaptmedseg.inference.support.similarity import Bank, Cells, cells_of
from adaptmedseg.inference.support.supports import TOGETHER, Support, SupportSet, others, subsets
from adaptmedseg.models.prompts import StructurePrompt
from adaptmedseg.models.sam import Sam

CPU = torch.device("cpu")


def sam() -> Sam:
    torch.manual_seed(3)
    return Sam(TINY_SAM).eval()


def disc(seed: int, shape: tuple[int, int] = (48, 64)) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc on noise, and its mask."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    cy, cx, r = rng.uniform(14, 34), rng.uniform(14, 50), rng.uniform(6, 11)
    mask = (y - cy) ** 2 + (x - cx) ** 2 < r**2
    grey = rng.normal(100, 12, shape) + 70 * mask
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2), mask


def discs(count: int, first: int = 0) -> SupportSet:
    found = [disc(first + seed) for seed in range(count)]
    return SupportSet([Support(f"s{i}", f"p{i}", image, {"disc": mask}) for i, (image, mask) in enumerate(found)])


@given(st.integers(1, 64), st.integers(0, 5))
def test_subsets_hold_each_support_once(count: int, seed: int) -> None:
    parts = subsets(count, np.random.default_rng(seed))
    assert sorted(i for part in parts for i in part) == list(range(count))
    assert max(map(len, parts)) <= TOGETHER
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts) == 1 or count > TOGETHER


def test_a_patient_is_left_out_as_a_whole() -> None:
    rng = np.random.default_rng(0)
    assert others(["a", "a", "b", "c"], 0, rng) == [2, 3]
    assert others(["a", "a", "a"], 1, rng) == [0, 2]  # one patient alone: its other images
    assert others(["a"], 0, rng) == []


def test_supports_are_drawn_from_as_many_patients_as_there_are() -> None:
    image, mask = disc(0)
    supports = [Support(f"{patient}{i}", patient, image, {"disc": mask}) for patient in "abc" for i in range(4)]
    drawn = SupportSet(supports).drawn(3, np.random.default_rng(1))
    assert sorted(support.group for support in drawn.supports) == ["a", "b", "c"]
    assert len(SupportSet(supports).drawn(7, np.random.default_rng(1)).supports) == 7


def test_bad_supports_are_told_in_a_sentence() -> None:
    image, mask = disc(0)
    with pytest.raises(UserError, match="set: holds no labelled image"):
        SupportSet([], "set")
    with pytest.raises(UserError, match="the mask of support a is empty"):
        SupportSet([Support("a", "a", image, {"disc": np.zeros_like(mask)})])
    with pytest.raises(UserError, match="the mask of 'disc' is 64×40 pixels and the image 64×48"):
        Support("a", "a", image, {"disc": mask[:40]})
    with pytest.raises(UserError, match="no support shows 'cup'; it shows disc"):
        discs(2).showing("cup")
    with pytest.raises(UserError, match="65 images show 'disc'"):
        SupportSet([Support(str(i), str(i), image, {"disc": mask}) for i in range(65)]).showing("disc")
    with pytest.raises(UserError, match="3 supports are asked for, and there are 2"):
        discs(2).drawn(3, np.random.default_rng(0))


def test_a_logistic_regression_is_that_of_an_independent_minimiser() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)) * (1, 5, 0.2) + (0, 2, -1)
    y = (rng.random(300) < 1 / (1 + np.exp(-(x @ (1.0, -0.4, 3.0) + 2)))).astype(np.float32)
    weight = rng.uniform(0.5, 2, 300)
    sampled = Sampled(torch.arange(300), torch.from_numpy(y), torch.from_numpy(weight).float())
    found = calibrate([torch.from_numpy(x).float()], [sampled])
    share = weight / weight.sum()
    mean = share @ x
    scale = np.sqrt(share @ (x - mean) ** 2)

    def loss(at: np.ndarray) -> float:
        logits = (x - mean) / scale @ at[:3] + at[3]
        entropy = np.logaddexp(0, logits) - y * logits
        return float(share @ entropy + RIDGE / 2 * (at[:3] ** 2).sum())

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(found.weight.numpy(), best[:3] / scale, rtol=1e-3)
    np.testing.assert_allclose(float(found.bias), best[3] - (best[:3] / scale) @ mean, rtol=1e-3)


def test_calibration_draws_to_what_it_starts_from_and_finds_the_threshold() -> None:
    maps = torch.linspace(-4, 4, 81)[None, None]
    target = (maps[0, 0] > 1.5).numpy()
    sampled = sample_pixels(target[None], np.random.default_rng(0))
    found = calibrate([sampled.rows(maps)], [sampled])
    logits = found(maps)[0]
    np.testing.assert_array_equal((logits > found.threshold).numpy(), target)
    assert found.dice == (1.0,)
    # Beside a map that tells all, one that tells nothing is left where it was.
    nothing = torch.cat([maps, torch.zeros_like(maps)])
    kept = calibrate([sampled.rows(nothing)], [sampled], torch.tensor([1.0, 0.0]))
    assert float(kept.weight[1]) == 0


def test_sampled_pixels_stand_for_all() -> None:
    mask = np.zeros((200, 200), bool)
    mask[:3, :5] = True
    sampled = sample_pixels(mask, np.random.default_rng(0))
    assert float(sampled.target.sum()) == 15
    torch.testing.assert_close(sampled.weight.sum(), torch.tensor(40000.0), rtol=1e-5, atol=0)


def test_a_query_like_a_support_is_expected_to_be_covered_like_it() -> None:
    frozen = FrozenSam(sam(), CPU, 64, bf16=False)
    image, mask = disc(1)
    encoded = frozen.encode(image)
    coverage = frozen.cells(torch.from_numpy(mask)[None].float(), frozen.frame((48, 64)))[0]
    assert coverage.shape == (8, 8)
    torch.testing.assert_close(coverage.sum() * 64, torch.tensor(float(mask.sum())), rtol=0.02, atol=0)
    assert int(encoded.inside.sum()) == 48  # 6 of 8 rows; the rest is padding
    cells = cells_of(encoded, coverage)
    sharp = Bank([cells]).priors(encoded)[2]  # the sharpest kernel that looks near by
    inside, outside = sharp[cells.coverage > 0.6], sharp[cells.coverage == 0]
    assert float(inside.min()) > float(outside.max())
    flat = encoded.spread(torch.full((1, 48), 3.0))
    torch.testing.assert_close(flat, torch.full((1, 48, 64), 3.0))


def test_nearest_prototype_by_hand() -> None:
    features = torch.tensor([[3.0, 1.0], [3.0, -1.0], [-1.0, 0.0], [-5.0, 0.0]])
    cells = Cells(features, torch.zeros(4, 2), torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.zeros(4))
    bank = Bank([cells])
    frozen = FrozenSam(sam(), CPU, 64, bf16=False)
    encoded = frozen.encode(disc(0)[0])
    query = torch.zeros(2, *encoded.inside.shape)
    query[0], query[0, 0, 0] = -2.0, 4.0
    asked = type(encoded)(encoded.shape, encoded.image, encoded.frame, query, encoded.inside)
    nearness = bank.nearest_prototype(asked)
    assert nearness[0] == pytest.approx(2.0)  # the centre is the origin: the prototypes are (1, 0) and (-1, 0)
    torch.testing.assert_close(nearness[1:], torch.full((47,), -2.0))


def test_thinned_banks_stand_for_all_cells() -> None:
    coverage = (torch.arange(1000) < 100).float()
    cells = Cells(torch.randn(1000, 4), torch.zeros(1000, 2), coverage, torch.zeros(1000))
    few = cells.thinned(400, torch.Generator().manual_seed(0))
    assert len(few.coverage) == 300  # all 100 that the structure touches, 200 of the others
    torch.testing.assert_close(few.log_weight.exp() @ few.coverage, torch.tensor(100.0))
    torch.testing.assert_close(few.log_weight.exp().sum(), torch.tensor(1000.0))


def test_parts_are_asked_one_by_one() -> None:
    logits = torch.full((40, 50), -4.0)
    logits[5:15, 8:20] = 3.0
    logits[25:32, 30:41] = 2.0
    logits[38, 2] = 5.0  # a speck: less than a tenth of the largest part
    large, small = parts_of(logits, 0.0)
    assert large.box.tolist() == [[5, 8], [14, 19]]
    assert small.box.tolist() == [[25, 30], [31, 40]]
    for part in (large, small):
        assert logits[tuple(part.inside.long())] > 0
        assert logits[tuple(part.outside.long())] < 0
        assert (part.logits > 0).sum() == (part.box[1] - part.box[0] + 1).prod()
    nothing = parts_of(logits - 10, 0.0)
    assert nothing[0].box.tolist() == [[38, 2], [38, 2]]


def test_the_decoder_is_asked_in_the_pictures_own_frame() -> None:
    """A picture and the same one twice as large, asked at the same places, get the same answers."""
    model = sam()
    image = picture(32, 48)
    large = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
    box = torch.tensor([[8.0, 16.0], [15.0, 23.0]])
    small_sam, large_sam = FrozenSam(model, CPU, 48, bf16=False), FrozenSam(model, CPU, 96, bf16=False)
    first = small_sam.decode(small_sam.encode(image), [StructurePrompt("x", text=False, box=box)])
    second = large_sam.decode(large_sam.encode(large), [StructurePrompt("x", text=False, box=box * 2)])
    assert first.shape == (1, 32, 48)
    assert second.shape == (1, 64, 96)
    pooled = torch.nn.functional.avg_pool2d(second, 2)
    assert float((pooled - first).abs().mean()) < 0.1 * float(first.std())


def test_filters_ignore_brightness_and_contrast() -> None:
    image, _ = disc(2)
    darker = (image.astype(np.float32) * 0.5 + 20).astype(np.float32)
    found, again = local_features(image), local_features(darker)
    torch.testing.assert_close(found, again, atol=1e-3, rtol=1e-3)
    assert float(found[-2:].abs().max()) == 0  # grey: no colours


def test_changed_copies_move_mask_and_picture_together() -> None:
    image, mask = disc(4)
    for seed in range(5):
        moved, where = jittered(image, mask, np.random.default_rng(seed))
        assert moved.dtype == np.uint8
        assert moved[where].mean() > moved[~where].mean() + 30
        assert dice(where, mask) < 1


def test_an_extent_moves_the_threshold_and_keeps_the_order() -> None:
    first, second = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    first[:2, :5], second[:4, :5] = True, True
    extent = Extent.of([first, first, second, second])
    assert (extent.least, extent.most) == (pytest.approx(0.08), pytest.approx(0.25))
    logits = torch.arange(100.0).flip(0).reshape(10, 10)
    nothing, all_of_it, between = logits - 200, logits + 1, logits - 84.5
    assert int((extent.applied(nothing) > 0).sum()) == 8
    assert int((extent.applied(all_of_it) > 0).sum()) == 25
    assert torch.equal(extent.applied(between), between)  # 15 of 100 pixels
    assert torch.equal(extent.applied(nothing).flatten().argsort(), logits.flatten().argsort())


def test_a_support_set_finds_what_it_shows_and_beats_the_nearest_prototype() -> None:
    queries = [disc(100 + seed) for seed in range(4)]
    segmenter = SupportSegmenter(sam(), discs(5), CPU, bf16=False)
    scores = {}
    for method in ("support set", "prior", "nearest prototype"):
        answers = [segmenter.segment(image, method=method)[0] for image, _ in queries]
        assert answers[0].logits.shape == (48, 64)
        scores[method] = np.mean([dice(a.mask, mask) for a, (_, mask) in zip(answers, queries, strict=True)])
    assert scores["support set"] > 0.8  # an untrained network: similarity and fixed filters are enough for discs
    assert scores["support set"] > scores["nearest prototype"] + 0.1
    assert abs(segmenter.tasks["disc"].expected_dice - scores["support set"]) < 0.15
    again = SupportSegmenter(sam(), discs(5), CPU, bf16=False).segment(queries[0][0])[0]
    np.testing.assert_array_equal(again.logits, segmenter.segment(queries[0][0])[0].logits)


def test_the_dice_to_expect_is_of_supports_that_the_answer_was_not_fitted_on() -> None:
    """Masks that have nothing to do with their pictures are found by a fit to them, and not by a fit without them."""
    drawn = [Support(str(i), str(i), disc(i)[0], {"disc": disc(500 + i)[1]}) for i in range(3)]
    task = SupportSegmenter(sam(), SupportSet(drawn), CPU, bf16=False).tasks["disc"]
    assert task.expected_dice < np.mean(task.answer.dice) - 0.02


@pytest.mark.parametrize(("count", "banks"), [(1, 1), (8, 2)])
def test_lone_supports_and_more_than_six(count: int, banks: int) -> None:
    segmenter = SupportSegmenter(sam(), discs(count), CPU, bf16=False)
    assert len(segmenter.tasks["disc"].banks) == banks
    image, mask = disc(200)
    assert dice(segmenter.segment(image)[0].mask, mask) > 0.5


def test_a_users_own_prompt_goes_before_those_of_the_supports() -> None:
    segmenter = SupportSegmenter(sam(), discs(3), CPU, bf16=False)
    task, query = segmenter.tasks["disc"], segmenter.sam.encode(disc(7)[0])
    given = StructurePrompt("disc", text=False, box=torch.tensor([[3.0, 4.0], [10.0, 12.0]]))
    expected = task.expected(query, task.banks[0])
    maps = task._evidence(query, expected, given)
    own = segmenter.sam.decode(query, [given])[0].clamp(-8, 8)
    torch.testing.assert_close(maps[2], own)
    assert segmenter.segment(disc(7)[0], {"disc": given})[0].logits.shape == (48, 64)


def test_neighbours_count_by_their_likeness() -> None:
    rng = torch.Generator().manual_seed(0)
    first, other = torch.randn(4, 2, 2, generator=rng), torch.randn(4, 2, 2, generator=rng)
    logits = [torch.full((3, 3), value) for value in (1.0, 4.0, -2.0)]
    # Slices alike, around a stack whose mean is zero: the first two count fully for each other, the last for itself.
    agreed = neighbours_agree(logits, [first, first, -2 * first])
    for found, expected in zip(agreed, (2.5, 2.5, -2.0), strict=True):
        torch.testing.assert_close(found, torch.full((3, 3), expected))
    alone = neighbours_agree(logits[:1], [other])
    assert torch.equal(alone[0], logits[0])


def test_the_surer_structure_wins() -> None:
    first = SupportAnswer("a", np.array([[1.0, 2.0, -1.0]], np.float32), 0.9)
    second = SupportAnswer("b", np.array([[2.0, 1.0, -2.0]], np.float32), 0.9)
    assert label_map([first, second]).tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("axis", ["d", "h", "w"])
def test_slices_go_back_to_where_they_came_from(axis: str) -> None:
    rng = np.random.default_rng(0)
    volume = rng.random((6, 8, 10), dtype=np.float32)
    planes = Planes((6, 8, 10), (2.0, 2.0, 2.0), axis)  # type: ignore[arg-type]
    pictures = [planes.grey(volume, index) for index in range(len(planes))]
    back = planes.stack([one.astype(np.float32) / 255 for one in pictures])
    np.testing.assert_allclose(back, volume, atol=1 / 255)
    if axis == "d":  # the last row of an axial plane is the front, and is shown on top; the last column is the right
        assert pictures[3][0, 0] == round(float(volume[3, 7, 9]) * 255)


def test_thick_slices_are_shown_with_square_pixels() -> None:
    planes = Planes((6, 8, 10), (4.0, 1.0, 2.0), "d")
    assert planes.size == (8, 20)
    assert planes.step == 1.0
    labels = np.zeros((6, 8, 10), np.uint8)
    labels[2, 5, 3] = 7
    shown = planes.labels(labels, 2)
    assert shown.sum() == 14
    assert planes.stack([planes.labels(labels, i).astype(np.float32) for i in range(6)])[2, 5, 3] == 7


def test_maps_of_answers_are_probabilities(tmp_path: Path) -> None:
    answer = SupportAnswer("a", np.array([[-100.0, 0.0, 100.0]], np.float32), 0.5)
    np.testing.assert_allclose(answer.probabilities, [[0, 0.5, 1]], atol=1e-6)
    assert answer.mask.tolist() == [[False, False, True]]
