"""Surfaces, lesions and volumes against numbers worked out by hand and against MONAI, DeepMind's and ITK's code."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import SimpleITK
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)
from scipy import ndimage

from adaptmedseg.evaluation.lesions import count_lesions
from adaptmedseg.evaluation.metrics import MaskMeasures, MeasureSettings, measure
from adaptmedseg.evaluation.surfaces import surface_distances

Masks = tuple[np.ndarray, np.ndarray]
MM = 1e-3  # how far apart surface measures of two implementations may be, in mm
RELATIVE = 1e-6


def blob(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth random blobs, noise, a single voxel or a box, as the draw has it."""
    kind = rng.integers(4)
    if kind == 0:
        smooth = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 2.0))
        return smooth > np.quantile(smooth, rng.uniform(0.4, 0.95))
    if kind == 1:
        return rng.random(shape) < rng.uniform(0.02, 0.9)
    mask = np.zeros(shape, bool)
    low = [int(rng.integers(n)) for n in shape]
    high = [a + 1 if kind == 2 else int(rng.integers(a + 1, n + 1)) for a, n in zip(low, shape, strict=True)]
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def random_case(seed: int) -> tuple[Masks, tuple[float, float, float]]:
    """Two masks with something in each, of random shape and anisotropic spacing; every third pair nearly alike."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(2, 15, size=3))
    d, h, w = (round(float(s), 3) for s in np.exp(rng.uniform(np.log(0.3), np.log(6), size=3)))
    truth = blob(rng, shape)
    prediction = truth ^ (rng.random(shape) < 0.05) if seed % 3 == 0 else blob(rng, shape)
    for mask in (prediction, truth):
        mask[tuple(n // 2 for n in shape)] |= not mask.any()
    return (prediction, truth), (d, h, w)


def as_monai(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None].float()


def check_against_monai(seed: int) -> None:
    (prediction, truth), spacing = random_case(seed)
    tolerance = float(np.random.default_rng(seed).uniform(0.2, 5))
    p, t = as_monai(prediction), as_monai(truth)
    for elements in ("voxels", "surfels"):
        ours = measure(prediction, truth, spacing, MeasureSettings(tolerance, elements)).as_dict()  # type: ignore[arg-type]
        nsd = compute_surface_dice(
            p, t, [tolerance], include_background=True, spacing=spacing, use_subvoxels=elements == "surfels"
        )
        assert ours["nsd"] == pytest.approx(nsd.item(), abs=1e-5), seed  # MONAI sums areas in float32
    ours = measure(prediction, truth, spacing).as_dict()
    overlap = measure(prediction, truth, spacing).overlap
    assert overlap.dice == pytest.approx(compute_dice(p, t).item(), rel=RELATIVE), seed
    assert ours["jaccard"] == pytest.approx(compute_iou(p, t).item(), rel=RELATIVE), seed
    settings = {"include_background": True, "spacing": spacing}
    assert ours["hd95_mm"] == pytest.approx(compute_hausdorff_distance(p, t, percentile=95, **settings).item(), abs=MM)
    for key, symmetric in (("assd_mm", True), ("asd_mm", False)):
        theirs = compute_average_surface_distance(p, t, symmetric=symmetric, **settings)
        assert ours[key] == pytest.approx(theirs.item(), abs=MM), seed


@pytest.fixture
def deepmind(monkeypatch: pytest.MonkeyPatch):
    """DeepMind's package; its one release on the index was written for older versions of numpy and scipy."""
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    monkeypatch.setattr(ndimage, "filters", ndimage, raising=False)
    monkeypatch.setattr(ndimage, "morphology", ndimage, raising=False)
    return pytest.importorskip("surface_distance")


def check_against_deepmind(package, seed: int) -> None:
    (prediction, truth), spacing = random_case(seed)
    tolerance = float(np.random.default_rng(seed).uniform(0.2, 5))
    theirs = package.compute_surface_distances(truth, prediction, spacing)
    ours = surface_distances(prediction, truth, spacing, "surfels")
    assert ours.normalised_dice(tolerance) == pytest.approx(
        package.compute_surface_dice_at_tolerance(theirs, tolerance), rel=RELATIVE
    )
    # Where exactly 95 percent of the area lies up to a distance, rounding decides which one theirs takes.
    low, high = ours.hausdorff(95), ours.hausdorff(95 + 1e-4)
    assert low - MM <= package.compute_robust_hausdorff(theirs, 95) <= high + MM, seed
    assert ours.hausdorff(100) == pytest.approx(package.compute_robust_hausdorff(theirs, 100), abs=MM), seed
    to_prediction, to_truth = package.compute_average_surface_distance(theirs)
    assert ours.average() == pytest.approx(to_truth, abs=MM), seed
    back = ours.to_prediction
    assert back.integral / back.total == pytest.approx(to_prediction, abs=MM), seed
    assert package.compute_dice_coefficient(truth, prediction) == pytest.approx(
        measure(prediction, truth, spacing).overlap.dice, rel=RELATIVE
    )


def check_against_itk(seed: int) -> None:
    """ITK's contours and distance maps; it sees no contour at the rim of an image, so that a margin is added."""
    (prediction, truth), spacing = random_case(seed)
    images = []
    for mask in (prediction, truth):
        image = SimpleITK.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
        image.SetSpacing(spacing[::-1])
        images.append(image)
    overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
    overlap.Execute(images[1], images[0])
    ours = measure(prediction, truth, spacing).as_dict()
    assert ours["jaccard"] == pytest.approx(overlap.GetJaccardCoefficient(1), rel=RELATIVE, abs=1e-12), seed
    assert measure(prediction, truth, spacing).overlap.dice == pytest.approx(
        overlap.GetDiceCoefficient(1), rel=RELATIVE, abs=1e-12
    )
    contours = [SimpleITK.LabelContour(image, False) for image in images]
    maps = [SimpleITK.SignedMaurerDistanceMap(c, False, False, True) for c in contours]
    here = [SimpleITK.GetArrayFromImage(c).astype(bool) for c in contours]
    far = [np.maximum(SimpleITK.GetArrayFromImage(m).astype(np.float64), 0) for m in maps]
    to_truth, to_prediction = far[1][here[0]], far[0][here[1]]
    assert ours["asd_mm"] == pytest.approx(to_truth.mean(), abs=MM), seed
    assert ours["assd_mm"] == pytest.approx(np.concatenate([to_truth, to_prediction]).mean(), abs=MM), seed
    assert ours["hd95_mm"] == pytest.approx(max(np.percentile(x, 95) for x in (to_truth, to_prediction)), abs=MM)
    for mask, count in ((prediction, ours["predicted_lesions"]), (truth, ours["truth_lesions"])):
        labels = SimpleITK.ConnectedComponent(SimpleITK.GetImageFromArray(mask.astype(np.uint8)), True)
        assert count == SimpleITK.GetArrayViewFromImage(labels).max(), seed


def test_agrees_with_monai() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(30):
            check_against_monai(seed)


def test_agrees_with_deepmind(deepmind) -> None:
    for seed in range(60):
        check_against_deepmind(deepmind, seed)


def test_agrees_with_itk() -> None:
    for seed in range(60):
        check_against_itk(seed)


@pytest.mark.slow
def test_agrees_with_all_of_them_on_a_thousand_cases(deepmind) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(1000):
            check_against_monai(seed)
            check_against_deepmind(deepmind, seed)
            check_against_itk(seed)


def cube(at: int, size: int = 4, shape: tuple[int, int, int] = (12, 12, 12)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[2 : 2 + size, 3 : 3 + size, at : at + size] = True
    return mask


def test_a_shifted_cube_by_hand() -> None:
    """Cubes of 4³ voxels shifted by two along w, 3 × 1 × 0.5 mm: Dice 1/2, the far faces 2·0.5 mm away."""
    prediction, truth = cube(5), cube(3)
    found = measure(prediction, truth, (3.0, 1.0, 0.5), MeasureSettings(tolerance_mm=0.75))
    assert found.overlap.dice == pytest.approx(0.5)
    assert found.overlap.jaccard == pytest.approx(1 / 3)
    surface = found.surface
    assert surface is not None
    # 56 surface voxels: at the first of the two lost slices (w = 0) all 16 are on the surface, of the second the 12 at
    # its rim; the slice that is the other cube's face has 16, of which 4 lie inside this cube.
    assert surface.hausdorff(100) == pytest.approx(1.0)
    assert len(surface.to_truth.mm) == 56
    # Slice w = 2 of the other cube's surface: 16 of its face. Ours: its first slice lies in the other cube's third,
    # where only the rim is surface: 4 inner voxels are one voxel along w (0.5 mm) from the face of the other cube.
    assert sorted(set(np.round(surface.to_truth.mm, 6))) == [0.0, 0.5, 1.0]
    assert surface.to_truth.mm.sum() == pytest.approx(4 * 0.5 + 12 * 0.5 + 16 * 1.0)
    assert surface.average() == pytest.approx(24 / 56)
    assert surface.normalised_dice(0.75) == pytest.approx((56 - 16) / 56)
    assert found.volume_error_ml == 0
    assert found.lesions.f1 == 1.0


def test_thick_slices_are_far_apart() -> None:
    prediction, truth = np.zeros((4, 3, 3), bool), np.zeros((4, 3, 3), bool)
    prediction[0, 1, 1] = truth[2, 1, 1] = True
    for spacing, expected in (((5.0, 1.0, 1.0), 10.0), ((1.0, 5.0, 5.0), 2.0)):
        found = measure(prediction, truth, spacing).as_dict()
        assert (found["hd95_mm"], found["assd_mm"], found["asd_mm"]) == (expected,) * 3
        assert found["nsd"] == (1.0 if expected <= 2 else 0.0)


@pytest.mark.parametrize("steps", range(1, 12))
def test_rounding_does_not_decide_what_is_within_the_tolerance(steps: int) -> None:
    """A voxel exactly the tolerance away counts, wherever it lies: 12·0.4 − 7·0.4 is a little more than 5·0.4."""
    for start in range(12):
        prediction, truth = np.zeros((1, 1, 24), bool), np.zeros((1, 1, 24), bool)
        prediction[..., start] = truth[..., start + steps] = True
        found = measure(prediction, truth, (1.0, 1.0, 0.4), MeasureSettings(tolerance_mm=steps * 0.4))
        assert found.nsd == 1.0


@pytest.mark.parametrize(
    ("marked", "true", "expected"),
    [
        (False, False, {"jaccard": None, "nsd": None, "lesion_f1": None, "relative_volume_error": None}),
        (False, True, {"jaccard": 0, "nsd": 0, "lesion_f1": 0, "lesion_recall": 0, "relative_volume_error": -1}),
        (True, False, {"jaccard": 0, "nsd": 0, "lesion_f1": 0, "lesion_precision": 0, "relative_volume_error": None}),
    ],
)
def test_empty_masks_have_no_distance(marked: bool, true: bool, expected: dict[str, object]) -> None:
    prediction, truth = np.zeros((3, 4, 5), bool), np.zeros((3, 4, 5), bool)
    prediction[1, 2, 3], truth[2, 2, 2] = marked, true
    found = measure(prediction, truth, (2.0, 1.0, 1.0)).as_dict()
    assert {key: found[key] for key in expected} == expected
    assert found["hd95_mm"] is found["assd_mm"] is found["asd_mm"] is None
    assert (found["truth_empty"], found["prediction_empty"]) == (not true, not marked)
    assert found["volume_error_ml"] == pytest.approx(0.002 * (marked - true))
    if not (marked and true):
        with pytest.raises(ValueError, match="no surface"):
            surface_distances(prediction, truth, (1.0, 1.0, 1.0))


def test_without_a_spacing_nothing_is_measured_in_mm() -> None:
    found = measure(cube(3), cube(4), None).as_dict()
    assert found["hd95_mm"] is found["assd_mm"] is found["asd_mm"] is found["nsd"] is None
    assert found["jaccard"] == pytest.approx(3 / 5)


def test_truth_cut_off_counts_for_overlap_and_volume() -> None:
    found: MaskMeasures = measure(cube(3), cube(3), (1.0, 1.0, 1.0), lost_truth_voxels=64)
    assert found.overlap.dice == pytest.approx(2 / 3)
    assert found.as_dict()["relative_volume_error"] == pytest.approx(-0.5)
    assert measure(cube(3), np.zeros_like(cube(3)), (1.0, 1.0, 1.0), lost_truth_voxels=64).nsd == 0


def test_lesions_by_hand() -> None:
    """Truth: A, B (touching by a corner: one), C, D. Prediction: two marks on A+B, one over C, two on nothing."""
    truth, prediction = np.zeros((3, 12, 12), bool), np.zeros((3, 12, 12), bool)
    truth[0, 0:2, 0:4] = truth[1, 2:4, 4:6] = True
    truth[1, 8:10, 1:3] = truth[2, 10:12, 10:12] = True
    prediction[0, 0, 0] = prediction[1, 3, 5] = prediction[1, 7:10, 1:3] = True
    prediction[0, 5, 11] = prediction[2, 0, 11] = True
    counts = count_lesions(prediction, truth)
    assert (counts.truth, counts.found, counts.predicted, counts.true) == (3, 2, 5, 3)
    assert (counts.precision, counts.recall) == (3 / 5, 2 / 3)
    assert counts.f1 == pytest.approx(2 * (3 / 5) * (2 / 3) / (3 / 5 + 2 / 3))


def test_measures_swap_as_they_should() -> None:
    """Symmetric measures do not care which mask is the truth; the others change roles."""
    for seed in range(20):
        (one, other), spacing = random_case(seed)
        a, b = measure(one, other, spacing).as_dict(), measure(other, one, spacing).as_dict()
        for key in ("jaccard", "hd95_mm", "assd_mm", "nsd", "lesion_f1", "absolute_volume_error_ml"):
            assert a[key] == pytest.approx(b[key])
        assert a["volume_error_ml"] == -b["volume_error_ml"]
        assert (a["lesion_precision"], a["truth_lesions"]) == (b["lesion_recall"], b["predicted_lesions"])
        self = measure(one, one, spacing).as_dict()
        assert (self["jaccard"], self["nsd"], self["hd95_mm"], self["assd_mm"]) == (1, 1, 0, 0)


def test_the_two_definitions_agree_on_fine_voxels() -> None:
    """Of a ball and a larger one round it both say the difference of radii, to within a voxel."""
    grid = np.indices((44, 44, 44)) - 21.5
    radius = np.sqrt((grid**2).sum(axis=0))
    for elements in ("voxels", "surfels"):
        found = measure(radius < 18, radius < 14, (0.5, 0.5, 0.5), MeasureSettings(elements=elements))  # type: ignore[arg-type]
        assert found.as_dict()["assd_mm"] == pytest.approx(2.0, abs=0.3)
