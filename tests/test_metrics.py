"""Dice and volume against numbers worked out by hand, and the statistics made of them."""

import numpy as np
import pytest

from adaptmedseg.data.overlap import dice
from adaptmedseg.evaluation.bootstrap import bootstrap_interval


def mask(*voxels: tuple[int, int, int]) -> np.ndarray:
    array = np.zeros((2, 3, 4), dtype=np.uint8)
    for voxel in voxels:
        array[voxel] = 1
    return array


def test_dice_by_hand() -> None:
    truth = mask((0, 0, 0), (0, 0, 1), (1, 2, 3))
    prediction = mask((0, 0, 1), (1, 2, 3), (1, 0, 0), (1, 0, 1), (1, 0, 2))
    assert dice(prediction, truth) == pytest.approx(2 * 2 / (5 + 3))
    assert dice(truth, truth) == 1.0
    assert dice(mask((0, 1, 1)), truth) == 0.0


def test_truth_voxels_outside_the_crop_are_misses() -> None:
    truth = mask((0, 0, 0), (0, 0, 1))
    assert dice(truth, truth, lost_truth_voxels=4) == pytest.approx(2 * 2 / (2 + 2 + 4))
    assert dice(mask(), mask(), lost_truth_voxels=4) == 0.0


def test_empty_truth_is_not_scored_unless_something_was_marked() -> None:
    assert dice(mask(), mask()) is None
    assert dice(mask((0, 0, 0)), mask()) == 0.0
    assert dice(mask(), mask((0, 0, 0))) == 0.0


def test_dice_refuses_what_it_would_misread() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        dice(np.zeros((1, 3, 4), bool), mask())
    with pytest.raises(ValueError, match="0 and 1 only"):
        dice(2 * mask((0, 0, 0)), mask())
    with pytest.raises(ValueError, match="negative"):
        dice(mask(), mask(), lost_truth_voxels=-1)


def test_interval_needs_three_patients() -> None:
    rng = np.random.default_rng(0)
    assert bootstrap_interval([0.1, 0.2, 0.3, 0.4], ["a", "a", "b", "b"], rng) is None
    assert bootstrap_interval([0.1, 0.2, 0.3], ["a", "b", "c"], rng) is not None


def test_interval_resamples_patients_not_scans() -> None:
    """Ten copies of every patient's scan hold no more information than one: the interval stays as wide."""
    values, patients = [0.2, 0.5, 0.6, 0.9], ["a", "b", "c", "d"]
    once = bootstrap_interval(values, patients, np.random.default_rng(1))
    often = bootstrap_interval(values * 10, patients * 10, np.random.default_rng(1))
    assert once == pytest.approx(often)


def test_interval_is_close_to_the_normal_one_and_repeatable() -> None:
    values = np.random.default_rng(5).normal(0.7, 0.1, 200).tolist()
    patients = list(range(200))
    low, high = bootstrap_interval(values, patients, np.random.default_rng(2)) or (0.0, 0.0)
    error = 1.96 * np.std(values) / np.sqrt(200)
    assert low == pytest.approx(np.mean(values) - error, abs=0.003)
    assert high == pytest.approx(np.mean(values) + error, abs=0.003)
    assert bootstrap_interval(values, patients, np.random.default_rng(2)) == (low, high)
