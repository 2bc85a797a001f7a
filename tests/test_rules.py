"""Rules for intensities: exact statistics, properties that all rules share, landmarks, and the bias field."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from adaptmedseg.data.bias import correct_bias
from adaptmedseg.data.coarse import block_means, refine
from adaptmedseg.data.intensity import IntensityStatistics, intensity_statistics
from adaptmedseg.data.normalise import Normalisation, Rule, fit_landmarks

RULES: tuple[Rule, ...] = ("segvol", "percentile", "zscore", "nyul")


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float32, (3, 4, 5), elements=st.integers(-1000, 3000).map(float))
    | arrays(np.float32, (3, 4, 5), elements=st.floats(-1000, 3000, width=32))
)
def test_statistics_agree_with_numpy(image: np.ndarray) -> None:
    foreground = image[image > np.mean(image, dtype=np.float64)]
    if not foreground.size:
        with pytest.raises(ValueError, match="constant"):
            intensity_statistics(image)
        return
    stats = intensity_statistics(image)
    near = {"rtol": 1e-5, "atol": 1e-3}
    np.testing.assert_allclose([*stats.volume.values()], np.percentile(image, [*stats.volume]), **near)
    np.testing.assert_allclose([*stats.foreground.values()], np.percentile(foreground, [*stats.foreground]), **near)
    found = [stats.lowest, stats.highest, stats.mean, stats.std]
    expected = [image.min(), image.max(), foreground.mean(dtype=np.float64), foreground.std(dtype=np.float64)]
    np.testing.assert_allclose(found, expected, **near)
    assert IntensityStatistics.from_json(json.loads(json.dumps(stats.to_json()))) == stats


def mri(seed: int, gain: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """Air, dark tissue, and bright tissue of several kinds, (d, h, w)."""
    rng = np.random.default_rng(seed)
    image = np.zeros((8, 24, 24), np.float32)
    image[:, 4:20, 4:20] = rng.normal(30, 3, (8, 16, 16))
    image[:, 8:16, 8:18] = rng.gamma(9, 30, (8, 8, 10))
    return gain * image + offset


def rule_of(name: Rule) -> Normalisation:
    if name != "nyul":
        return Normalisation(rule=name)
    return Normalisation(rule="nyul", landmarks=fit_landmarks(intensity_statistics(mri(seed)) for seed in range(3)))


@pytest.mark.parametrize("name", RULES)
def test_rules_rise_stay_in_range_and_ignore_gain_and_offset(name: Rule) -> None:
    rule, image = rule_of(name), mri(5)
    seen = rule.curve(intensity_statistics(image))(image)
    assert seen.dtype == np.float32
    assert 0 <= seen.min() < 0.35
    assert 0.9 < seen.max() <= 1
    order = np.argsort(image, axis=None)
    assert (np.diff(seen.ravel()[order]) >= -1e-6).all()
    other = mri(5, gain=3.5, offset=-40)
    np.testing.assert_allclose(rule.curve(intensity_statistics(other))(other), seen, atol=5e-4)


def test_only_segvols_rule_makes_dark_tissue_black() -> None:
    image = mri(1)
    stats, dark = intensity_statistics(image), np.s_[:, 4:8, 4:20]
    shares = {name: float((rule_of(name).curve(stats)(image)[dark] <= 0).mean()) for name in RULES}
    assert shares["segvol"] > 0.9
    assert shares["percentile"] == shares["nyul"] == 0


def test_landmarks_bring_scanners_together() -> None:
    """Two scanners whose contrasts differ by a curve agree better after Nyúl's rule than after a plain range."""
    images = mri(2), mri(3).clip(0) ** 1.3
    distance = {}
    for name in ("percentile", "nyul"):
        quantiles = [
            np.quantile(rule_of(name).curve(intensity_statistics(image))(image), (0.88, 0.92, 0.97)) for image in images
        ]
        distance[name] = np.abs(quantiles[0] - quantiles[1]).max()
    assert distance["nyul"] < 0.5 * distance["percentile"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rule": "minmax"}, "Input should be"),
        ({"rule": "zscore", "landmarks": [0.1] * 11}, "takes no landmarks"),
        ({"rule": "nyul", "landmarks": [0.1, 0.2]}, "2 landmarks are given and 11"),
        ({"rule": "nyul", "landmarks": [0.9, *[0.5] * 10]}, "must rise"),
    ],
)
def test_wrong_rules_are_told(values: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Normalisation.model_validate(values)


def test_landmarks_come_before_their_curve() -> None:
    with pytest.raises(ValueError, match="fitted on training cases"):
        Normalisation(rule="nyul").curve(intensity_statistics(mri(0)))
    with pytest.raises(ValueError, match="at least one case"):
        fit_landmarks([])


def test_coarse_copies_keep_means_and_ramps() -> None:
    ramp = np.arange(12, dtype=np.float32)[:, None, None] * np.ones((1, 5, 6), np.float32)
    coarse = block_means(ramp, (4, 2, 3))
    np.testing.assert_allclose(coarse[:, 0, 0], [1, 4, 7, 10])
    assert coarse.mean() == pytest.approx(ramp.mean())
    fine = refine(coarse, ramp.shape)
    assert fine.shape == ramp.shape
    np.testing.assert_allclose(fine[1:-1], ramp[1:-1], atol=1e-4)


def test_bias_correction_flattens_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    tissue = np.zeros((4, 24, 24), np.float32)
    tissue[:, 3:21, 3:21] = 400 + rng.normal(0, 8, (4, 18, 18))
    biased = tissue * np.exp(np.linspace(-0.4, 0.4, 24, dtype=np.float32))
    corrected = correct_bias(biased, (3.0, 1.0, 1.0))
    inside = tissue > 200
    before, after = (float(image[inside].std() / image[inside].mean()) for image in (biased, corrected))
    assert after < 0.6 * before
    np.testing.assert_array_equal(corrected, correct_bias(biased, (3.0, 1.0, 1.0)))
    seen = Normalisation(rule="percentile", n4=True).apply(biased, intensity_statistics(biased), (3.0, 1.0, 1.0))
    plain = Normalisation(rule="percentile").curve(intensity_statistics(corrected))
    np.testing.assert_allclose(seen, plain(corrected))
