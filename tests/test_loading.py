"""Windows, balance, lazily read views, artefacts, and a rule for intensities that goes from training to prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from adaptmedseg.preprocessing.folder import prepare_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cases import save, small_folder, small_image, small_labels
from torch.utils.data import DataLoader

from adaptmedseg.checkpoints.store import save_base
from adaptmedseg.data.normalise import Normalisation, fit_landmarks
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.errors import UserError
from adaptmedseg.inference.loading import (
    LoadedModel,
    load_model,
    recorded_normalisation,
    taught_normalisations,
    trained_on_windows,
)
from adaptmedseg.models.adapted import AdaptedSegVol, AdapterConfig
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.training.artefacts import apply_artefacts, build_artefacts
from adaptmedseg.training.augment import augment, build_augmentation
from adaptmedseg.training.choice import Choice
from adaptmedseg.training.config import AugmentConfig, BalanceConfig, DataConfig, PromptConfig, TrainConfig
from adaptmedseg.training.run import run_training
from adaptmedseg.training.sampling import Batch, BatchStream
from adaptmedseg.training.training_set import drawn_patients, fitted, load_training_set, training_cases
from adaptmedseg.training.views import CachedView, LazyView

SIZE = (8, 16, 16)
LABELS = {1: "left kidney", 2: "right kidney"}
STILL = AugmentConfig(
    spatial=0, rotate=0, scale=0, translate=0, shear=0, mirror=0, intensity=0, gamma=0, noise=0, blur=0, bias_field=0
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    source = small_folder(tmp_path_factory.mktemp("in"), 4)
    out = tmp_path_factory.mktemp("out") / "prepared"
    return prepare_folder(source, out, name="small", modality="T2", labels=LABELS, test_fraction=0, val_fraction=0)


def config(dataset: PreparedDataset, **data: object) -> TrainConfig:
    values = {"name": "x", "budget": {"steps": 1}, "data": {"paths": [str(dataset.folder)], **data}, "augment": STILL}
    return TrainConfig.model_validate(values)


def stream(given: TrainConfig, seed: int = 3) -> BatchStream:
    views = load_training_set(given, SIZE, "smooth").views
    return BatchStream(views, 2, 2, PromptConfig(), given.augment, seed, given.data.balance, given.data.zoom_in)


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.masks, second.masks)
        and first.prompts.structures == second.prompts.structures
    )


# Windows --------------------------------------------------------------------------------


def test_windows_show_the_scans_own_voxels(prepared: PreparedDataset) -> None:
    case = prepared.cases()[0]
    training = config(prepared, zoom_in=1.0)
    view = next(
        v for v in load_training_set(training, SIZE, "smooth").views if v.windows and v.windows.case.id == case.id
    )
    assert view.windows is not None
    whole, rng = case.image(), np.random.default_rng(0)
    for name in ("left kidney", "right kidney"):
        for _ in range(10):
            image, masks = view.windows.draw(name, rng)
            assert tuple(image.shape) == masks.shape[1:] == SIZE
            assert masks[view.windows.structures.index(name)].any()
            assert np.isin(image.numpy(), np.append(whole, 0)).all()


def test_a_window_larger_than_the_crop_is_padded_on_both_sides(prepared: PreparedDataset) -> None:
    training = config(prepared, zoom_in=1.0)
    view = load_training_set(training, (12, 40, 40), "smooth").views[0]
    assert view.windows is not None
    image, masks = view.windows.draw("left kidney", np.random.default_rng(0))
    case = view.windows.case
    assert int(masks[view.windows.structures.index("left kidney")].sum()) == case.voxels_in_crop["left kidney"]
    filled = np.argwhere(image.numpy() > 0)
    margins = np.stack([filled.min(0), np.array(image.shape) - 1 - filled.max(0)])
    assert (np.abs(margins[0] - margins[1]) <= 1 + np.array([1, 1, 1])).all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_whatever_worker_makes_them(prepared: PreparedDataset, share: float, workers: int) -> None:
    source = stream(config(prepared, zoom_in=share, balance={"structure": 3.0}))
    loader = DataLoader(source, batch_size=None, num_workers=workers)
    for index, batch in enumerate(islice(loader, 4)):
        assert same(batch, source.batch(index))


def test_windows_need_no_bias_correction() -> None:
    with pytest.raises(ValueError, match="set zoom_in to 0 or n4 to false"):
        DataConfig(zoom_in=0.5, normalise=Normalisation(n4=True))


def test_views_beyond_the_cache_are_made_anew_and_equal(prepared: PreparedDataset) -> None:
    kept, lazy = config(prepared), config(prepared, cache_gib=1e-9)
    views = load_training_set(lazy, SIZE, "smooth").views
    assert [type(view) for view in views] == [CachedView, LazyView, LazyView, LazyView]
    first, second = stream(kept), stream(lazy)
    assert all(same(first.batch(i), second.batch(i)) for i in range(4))


# Balance --------------------------------------------------------------------------------


def bare(modality: str, dataset: str, *names: str) -> CachedView:
    bits = {name: bit for bit, name in enumerate(names)}
    return CachedView(modality, torch.zeros(SIZE), np.zeros(SIZE, np.uint8), bits, {n: n for n in names}, dataset)


UNEVEN = [bare("CT", "a", "liver")] * 9 + [bare("CT", "b", "liver", "spleen")] * 2 + [bare("T2 MRI", "c", "prostate")]


def shares(views: Sequence[CachedView], balance: BalanceConfig, count: int = 3000) -> dict[str, float]:
    choice = Choice(views, balance, 0)
    drawn = Counter(views[choice.case(i)].dataset for i in range(count))
    return {name: n / count for name, n in drawn.items()}


def test_without_balance_every_case_comes_once_an_epoch() -> None:
    choice = Choice(UNEVEN, BalanceConfig(), 5)
    for epoch in range(3):
        assert sorted(choice.case(12 * epoch + i) for i in range(12)) == list(range(12))


def test_temperatures_even_modalities_and_data_sets_out() -> None:
    inf = float("inf")
    by_modality = shares(UNEVEN, BalanceConfig(modality=inf))
    assert by_modality == pytest.approx({"a": 0.5 * 9 / 11, "b": 0.5 * 2 / 11, "c": 0.5}, abs=0.03)
    by_both = shares(UNEVEN, BalanceConfig(modality=inf, dataset=inf))
    assert by_both == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5}, abs=0.03)
    half = shares(UNEVEN, BalanceConfig(modality=2.0))
    assert half["c"] == pytest.approx(1 / (1 + 11**0.5), abs=0.03)


def test_a_rare_structure_is_drawn_more_often() -> None:
    choice = Choice(UNEVEN, BalanceConfig(structure=float("inf")), 0)
    rng = np.random.default_rng(0)
    drawn = Counter(choice.structures(["liver", "spleen"], 1, rng)[0] for _ in range(2000))
    assert drawn["spleen"] / 2000 == pytest.approx((1 / 2) / (1 / 2 + 1 / 11), abs=0.03)
    within_a_set = [bare("CT", "a", "liver")] * 9 + [bare("CT", "a", "liver", "spleen")]
    choice = Choice(within_a_set, BalanceConfig(structure=4.0), 0)
    assert sum(choice.case(i) == 9 for i in range(3000)) / 3000 == pytest.approx(0.27, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 1000))
def test_a_draw_depends_on_seed_and_position_alone(position: int, seed: int) -> None:
    balance = BalanceConfig(modality=2.0, structure=3.0)
    first, second = Choice(UNEVEN, balance, seed), Choice(UNEVEN, balance, seed)
    first.case(position + 1)
    assert first.case(position) == second.case(position)


# Artefacts ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["motion", "ghosting", "anisotropy"])
def test_artefacts_replay_spare_masks_and_other_streams(kind: str) -> None:
    given = STILL.model_copy(update={kind: 1.0})
    image = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(0))
    masks = np.random.default_rng(0).random((3, *SIZE)) > 0.6
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    transform = build_augmentation(given, SIZE)
    out, kept = augment(transform, image, masks, 9)
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(kept, masks)
    assert out.shape == image.shape
    assert not torch.allclose(out, image, atol=1e-3)
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(augment(transform, image, masks, 9)[0], out)
    assert not torch.equal(augment(transform, image, masks, 10)[0], out)


def test_no_artefacts_unless_asked_for() -> None:
    assert build_artefacts(AugmentConfig()) == []
    image = torch.rand(1, *SIZE)
    assert torch.equal(apply_artefacts([], image, 0), image)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_masks_are_moved_by_picking_voxels_never_by_mixing_them(seed: int) -> None:
    """Three structures that fill the view between them: linear interpolation would leave gaps and overlaps."""
    masks = np.zeros((3, *SIZE), bool)
    masks[0, :, :, :5], masks[1, :, :, 5:9], masks[2, :, :, 9:] = True, True, True
    given = AugmentConfig(mirror=0, motion=0.5, ghosting=0.5, anisotropy=0.5)
    _, moved = augment(build_augmentation(given, SIZE), torch.rand(1, *SIZE), masks, seed)
    assert moved.dtype == bool
    assert moved.sum(0).max() <= 1


def test_few_patients_are_drawn_by_seed_whatever_the_order(tmp_path: Path) -> None:
    source = small_folder(tmp_path / "in", 6)
    dataset = prepare_folder(source, tmp_path / "p", name="x", modality="T2", labels=LABELS, test_fraction=0)
    drawn = [[case.id for _, case in training_cases(config(dataset, patients=count))] for count in (1, 3, 5)]
    assert [len(ids) for ids in drawn] == [1, 3, 5]
    assert set(drawn[0]) < set(drawn[1]) < set(drawn[2])
    cases = dataset.cases("train")
    assert drawn_patients(cases[::-1], 3, 0, "p")[::-1] == drawn_patients(cases, 3, 0, "p")
    assert len({tuple(case.id for case in drawn_patients(cases, 2, seed, "p")) for seed in range(20)}) > 1
    with pytest.raises(UserError, match=r"data\.patients is 9, and there are 5"):
        training_cases(config(dataset, patients=9))


# Normalisation, from training to prediction -----------------------------------------------


def test_landmarks_are_fitted_on_the_training_cases_alone(tmp_path: Path) -> None:
    source = small_folder(tmp_path / "in", 5)
    dataset = prepare_folder(source, tmp_path / "p", name="x", modality="T2", labels=LABELS, folds=5)
    given = config(dataset, normalise={"rule": "nyul"}, fold=1)
    landmarks = fitted(given).data.normalise.landmarks
    assert landmarks == fit_landmarks(case.statistics for case in dataset.fold(1)[0])
    assert landmarks != fit_landmarks(case.statistics for case in dataset.cases())
    assert fitted(fitted(given)) == fitted(given)
    written = yaml.safe_load(yaml.safe_dump(fitted(given).model_dump(mode="json")))
    assert TrainConfig.model_validate(written) == fitted(given)


def test_the_rule_is_in_the_views(prepared: PreparedDataset) -> None:
    plain, other = (
        load_training_set(config(prepared, normalise={"rule": rule}), SIZE, "smooth").views[0].load().image
        for rule in ("segvol", "percentile")
    )
    assert not torch.allclose(plain, other, atol=1e-2)


def test_a_gated_modality_keeps_the_bases_rule(tiny_base: SegVol) -> None:
    model = AdaptedSegVol(tiny_base, AdapterConfig(), ["prostate"], ["T2 MRI"])
    rule = Normalisation(rule="zscore")
    loaded = LoadedModel(model, SIZE, "smooth", [], frozenset(), {}, "x", normalisation=rule)
    assert loaded.normalisation_of("T2 MRI") == rule
    assert loaded.normalisation_of("CT") == Normalisation()
    plain = LoadedModel(tiny_base, SIZE, "smooth", [], frozenset(), {}, "x", normalisation=rule)
    assert plain.normalisation_of("CT") == rule


def test_every_modality_is_seen_as_its_last_training_saw_it(tiny_base: SegVol) -> None:
    """Without a gate too: an adapter of MRI is no reason to show CT in another way than its base learned it."""
    rule, older = Normalisation(rule="percentile"), Normalisation(rule="zscore")
    first = {"training": {"modalities": ["CT", "T1 MRI"], "normalisation": older.model_dump(mode="json")}}
    then = {"training": {"modalities": ["T1 MRI"]}, "started_from": first}
    assert taught_normalisations(then) == {"CT": older, "T1 MRI": Normalisation()}
    model = AdaptedSegVol(tiny_base, AdapterConfig(gate_by_modality=False), ["prostate"], ["T2 MRI"])
    taught = taught_normalisations(then) | {"T2 MRI": rule}
    loaded = LoadedModel(model, SIZE, "smooth", [], frozenset(), {}, "x", normalisation=rule, taught=taught)
    assert [loaded.normalisation_of(name) for name in ("CT", "T2 MRI", "PET")] == [older, rule, rule]


def test_what_a_model_file_records() -> None:
    assert recorded_normalisation({}) == recorded_normalisation(None) == Normalisation()
    rule = Normalisation(rule="percentile", n4=True)
    assert recorded_normalisation({"normalisation": rule.model_dump(mode="json")}) == rule
    with pytest.raises(UserError, match="damaged"):
        recorded_normalisation({"normalisation": {"rule": "magic"}})


def test_prediction_sees_what_training_saw(tmp_path: Path, tiny_base: SegVol) -> None:
    """A predictor whose model was taught a rule gives its network the very crop that the prepared case gives."""
    from adaptmedseg.inference.predictor import Predictor

    scan = save(tmp_path / "in" / "images" / "a.nii.gz", small_image(1))
    save(tmp_path / "in" / "labels" / "a.nii.gz", small_labels(1))
    prepare_folder(
        tmp_path / "in", tmp_path / "p", name="x", modality="T2", labels=LABELS, test_fraction=1, val_fraction=0
    )
    (case,) = PreparedDataset.open(tmp_path / "p").cases()
    rule = Normalisation(rule="percentile")
    loaded = LoadedModel(
        tiny_base, tiny_base.config.spatial_size, "smooth", [], frozenset(), {}, "x", normalisation=rule
    )
    predictor, seen = Predictor(loaded, torch.device("cpu")), []
    predictor.segmenter.set_crop = lambda crop, modality: seen.append(crop)  # type: ignore[method-assign]
    predictor.set_image(scan, "T2 MRI")
    np.testing.assert_allclose(seen[0], case.image(rule), atol=1e-6)
    assert not np.allclose(seen[0], case.image(), atol=1e-2)


@pytest.mark.parametrize(
    ("card", "windows"),
    [
        ({}, False),
        ({"training": {"zoom_in": 0.0}}, False),
        ({"training": {"zoom_in": 0.5}}, True),
        ({"training": {"zoom_in": 0.0}, "started_from": {"training": {"zoom_in": 1.0}}}, True),
        ({"training": {"grown_from": {"name": "x", "training": {"zoom_in": 0.5}}, "zoom_in": 0.0}}, True),
        ({"training": {"grown_from": {"name": "x", "training": {}}}, "started_from": {"training": None}}, False),
    ],
)
def test_what_was_trained_on_windows_is_asked_by_windows(
    tiny_base: SegVol, tmp_path: Path, card: dict[str, object], windows: bool
) -> None:
    assert trained_on_windows(card) == windows
    save_base(tmp_path / "base.safetensors", tiny_base, {"name": "tiny", **card})
    loaded = load_model(str(tmp_path / "base.safetensors"))
    assert (loaded.zoom_in, loaded.zooms("CT")) == (windows, windows)


def test_an_adapter_records_its_windows_and_its_gate_keeps_the_bases_way(
    prepared: PreparedDataset, tiny_base: SegVol, tmp_path: Path
) -> None:
    base = tmp_path / "base.safetensors"
    save_base(base, tiny_base, {"name": "tiny"})
    given = config(prepared, zoom_in=0.5)
    given = given.model_copy(update={"base": str(base), "adapter": AdapterConfig(gate_by_modality=True)})
    run_training(given, tmp_path / "run", torch.device("cpu"))
    loaded = load_model(str(tmp_path / "run"))
    assert loaded.zooms("T2 MRI")
    assert not loaded.zooms("CT")
