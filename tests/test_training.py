"""Training: losses, schedule, batches, augmentation, configuration, and a few real steps."""

from __future__ import annotations

import copy
import math
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader

from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, LayerAdapterConfig, PriorsConfig
from adaptmedseg.models.prompts import text_prompts
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.training.augment import augment, build_augmentation
from adaptmedseg.training.average import WeightAverage
from adaptmedseg.training.config import (
    AugmentConfig,
    BudgetConfig,
    OptimiserConfig,
    PromptConfig,
    TrainConfig,
)
from adaptmedseg.training.config_file import load_config, named_model
from adaptmedseg.training.losses import bce_loss, dice_loss, segmentation_loss, target_on_map
from adaptmedseg.training.muon import BatchedMuon
from adaptmedseg.training.observer import Observer
from adaptmedseg.training.optimisers import build_optimisers, learning_rate_factor
from adaptmedseg.training.sampling import Batch, BatchStream
from adaptmedseg.training.simulate import box_of, simulate_boxes, simulate_points
from adaptmedseg.training.slice_config import SliceTrainConfig
from adaptmedseg.training.stop import StopRequest, TrainingStopped
from adaptmedseg.training.trainer import Trainer
from adaptmedseg.training.views import CachedView

SIZE = (8, 32, 32)
MR = "T2 MRI"
STILL = AugmentConfig(
    rotate=0, scale=0, translate=0, shear=0, mirror=0, intensity=0, gamma=0, noise=0, blur=0, bias_field=0
)
ALL_PROMPTS = PromptConfig(text=0.2, text_box=0.2, text_points=0.2, box=0.2, points=0.2)
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ALL_CONFIGS = [p for p in sorted(CONFIGS.rglob("*.yaml")) if "budget" in yaml.safe_load(p.read_text(encoding="utf-8"))]
TRAIN_CONFIGS = [p for p in ALL_CONFIGS if named_model(p) != "sam"]


def view(modality: str = MR, shift: int = 0) -> CachedView:
    """A phantom of three bright boxes on a dim ramp: one structure in the middle and a left/right pair."""
    image = np.linspace(0.1, 0.3, SIZE[2], dtype=np.float32) * np.ones(SIZE, np.float32)
    places = {
        "liver": np.s_[2:6, 10 + shift : 20, 12:22],
        "left kidney": np.s_[1:7, 4:12, 2:9],
        "right kidney": np.s_[2:5, 20:28, 24:30],
    }
    labels = np.zeros(SIZE, np.uint8)
    for value, place in enumerate(places.values()):
        labels[place] |= 1 << value
        image[place] = 0.5 + 0.2 * value
    bits = {name: bit for bit, name in enumerate(places)}
    mirrored = {"liver": "liver", "left kidney": "right kidney", "right kidney": "left kidney"}
    return CachedView(modality, torch.from_numpy(image).half(), labels, bits, mirrored)


def masks_of(cached: CachedView) -> dict[str, np.ndarray]:
    return {name: cached.mask(name) for name in cached.bits}


def stream(
    views: list[CachedView],
    augmentation: AugmentConfig = STILL,
    seed: int = 0,
    *,
    batch_size: int = 2,
    structures_per_image: int = 2,
    prompts: PromptConfig = ALL_PROMPTS,
) -> BatchStream:
    return BatchStream(views, batch_size, structures_per_image, prompts, augmentation, seed)


def same(a: Batch, b: Batch) -> bool:
    """Whether two batches are equal in every part."""
    fields = ("image_index", "points", "labels", "boxes")
    pairs = [
        (a.images, b.images),
        (a.masks, b.masks),
        *((getattr(a.prompts, n), getattr(b.prompts, n)) for n in fields),
    ]
    tensors = all(x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)
    rest = ("structures", "modalities", "use_text")
    return tensors and all(getattr(a.prompts, n) == getattr(b.prompts, n) for n in rest)


# Losses and schedule --------------------------------------------------------------------


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 0.0, math.log(3), -math.log(3)]]], [[[0.0, 0.0, 0.0, 0.0]]]])
    target = torch.tensor([[[[1.0, 0.0, 1.0, 0.0]]], [[[0.0, 0.0, 0.0, 0.0]]]])
    # Probabilities 1/2, 1/2, 3/4, 1/4: overlap 5/4, sums 2 and 2; then an empty target with probability 1/2 everywhere.
    # One in the denominator alone keeps an empty target from dividing by nothing.
    dice = torch.tensor([1 - 2.5 / 5, 1.0])
    bce = torch.tensor([(2 * math.log(2) + 2 * math.log(4 / 3)) / 4, math.log(2)])
    torch.testing.assert_close(dice_loss(logits, target), dice)
    torch.testing.assert_close(bce_loss(logits, target), bce)
    torch.testing.assert_close(
        segmentation_loss(logits.bfloat16(), target.bool()), (dice + bce).mean(), atol=2e-3, rtol=0
    )


def test_a_perfect_mask_costs_next_to_nothing() -> None:
    target = (torch.arange(2 * 4 * 8 * 8).reshape(2, 4, 8, 8) % 3 == 0).float()
    inside = int(target[0].sum())
    assert float(segmentation_loss(200 * target - 100, target)) < 1.05 / (2 * inside + 1)  # the one in the denominator
    assert float(segmentation_loss(100 - 200 * target, target)) > 90


def test_target_on_map_is_the_fraction_of_each_cell() -> None:
    masks = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    masks[0, :2, :2, :1] = True
    masks[1] = True
    found = target_on_map(masks, torch.Size([2, 2, 2]))
    expected = torch.zeros(2, 2, 2, 2)
    expected[0, 0, 0, 0] = 0.5
    expected[1] = 1
    assert torch.equal(found, expected)
    assert torch.equal(target_on_map(masks, torch.Size([4, 4, 4])), masks.float())
    assert float(target_on_map(masks, torch.Size([3, 3, 3]))[1].min()) == 1


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    assert learning_rate_factor(0.0, 0.1) < 0.02
    assert learning_rate_factor(0.05, 0.1) == pytest.approx(0.5, abs=0.01)
    assert learning_rate_factor(0.1, 0.1) == 1
    assert learning_rate_factor(0.55, 0.1) == pytest.approx(0.5)
    assert learning_rate_factor(1.0, 0.1) == pytest.approx(0)
    assert learning_rate_factor(1.3, 0.1) == pytest.approx(0)
    assert learning_rate_factor(0.0, 0.0) == 1
    falling = [learning_rate_factor(p, 0.1) for p in np.linspace(0.1, 1, 20)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_only_matrices_decay(matrices: Literal["muon", "adamw"]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(1, 4), nn.Linear(4, 2))
    model[3].requires_grad_(False)
    optimisers = build_optimisers(model, OptimiserConfig(matrices=matrices, weight_decay=0.3))
    assert isinstance(optimisers[0], BatchedMuon) == (matrices == "muon")
    decaying, rest = (dict[str, Any](group) for optimiser in optimisers for group in optimiser.param_groups)
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert [p.shape for p in decaying["params"]] == [(4, 3)]
    assert [p.shape for p in rest["params"]] == [(4,), (4,), (4,), (1, 4)]


def test_the_average_forgets_its_start_and_swaps_back() -> None:
    parameter = nn.Parameter(torch.tensor([0.0]))
    average = WeightAverage([parameter], 0.5)
    values = [1.0, 2.0, 4.0]
    expected = 0.0
    for step, value in enumerate(values, 1):
        parameter.data.fill_(value)
        average.update()
        decay = min(0.5, step / (step + 10))
        expected = decay * expected + (1 - decay) * value
    average.swap()
    assert parameter.item() == pytest.approx(expected)
    average.swap()
    assert parameter.item() == 4.0


# Prompts from labels --------------------------------------------------------------------


def test_boxes_surround_their_masks() -> None:
    masks = np.stack([*masks_of(view()).values(), np.zeros(SIZE, bool)])
    box = box_of(masks[0])
    assert box is not None
    assert box.tolist() == [[2, 10, 12], [5, 19, 21]]
    assert box_of(masks[3]) is None
    boxes = simulate_boxes(masks, np.random.default_rng(0))
    tight = torch.tensor([[2.0, 10, 12], [5, 19, 21]])
    extent = tight[1] - tight[0] + 1
    assert ((boxes[0] - tight).abs() <= 0.05 * extent + 1e-5).all()
    assert (boxes[3, 0] < 1).sum() >= 1
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor(SIZE) - 1).all()


def test_points_lie_where_their_labels_say() -> None:
    masks = np.stack([*masks_of(view()).values(), np.zeros(SIZE, bool)])
    for seed in range(5):
        points, labels = simulate_points(masks, 1 + seed % 4, np.random.default_rng(seed))
        assert points.shape == (*labels.shape, 3)
        for mask, places, inside in zip(masks, points.long().numpy(), labels.numpy(), strict=True):
            assert mask[tuple(places.T)].tolist() == (inside == 1).tolist()
        assert (labels == 0).any(1).all()
        assert (labels[:3, 0] == 1).all()


# Batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_same_whatever_worker_makes_them(workers: int) -> None:
    source = stream([view(), view("CT", 3)], AugmentConfig(), seed=4)
    expected = [source.batch(i) for i in range(5)]
    assert all(same(a, b) for a, b in zip(islice(iter(source), 5), expected, strict=True))
    loader = iter(DataLoader(source, batch_size=None, num_workers=workers))
    assert all(same(a, b) for a, b in zip(islice(loader, 5), expected, strict=True))


def test_the_seed_decides() -> None:
    views = [view(), view("CT", 3)]
    first = [stream(views, AugmentConfig(), seed=1).batch(i) for i in range(3)]
    assert all(same(a, stream(views, AugmentConfig(), seed=1).batch(i)) for i, a in enumerate(first))
    assert not any(same(a, stream(views, AugmentConfig(), seed=2).batch(i)) for i, a in enumerate(first))
    assert not same(first[0], first[1])


def test_a_batch_holds_what_its_prompts_ask_for() -> None:
    source = stream([view(), view("CT", 3)], batch_size=4, structures_per_image=3)
    for index in range(6):
        batch = source.batch(index)
        assert batch.images.shape == (4, 1, *SIZE)
        assert batch.masks.shape == (12, *SIZE)
        assert batch.masks.dtype == torch.bool
        assert batch.prompts.image_index.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
        for row, name, mask in zip(batch.prompts.image_index, batch.prompts.structures, batch.masks, strict=True):
            shift = 3 if batch.prompts.modalities[int(row)] == "CT" else 0
            assert np.array_equal(mask.numpy(), masks_of(view(shift=shift))[name])


def test_every_kind_of_prompt_comes_up_as_often_as_asked() -> None:
    source = stream([view()], batch_size=1, structures_per_image=1)
    kinds = [source.batch(i).prompts for i in range(60)]
    seen = [(p.use_text, p.boxes is not None, p.points is not None) for p in kinds]
    wanted = {
        (True, False, False),
        (True, True, False),
        (True, False, True),
        (False, True, False),
        (False, False, True),
    }
    assert set(seen) == wanted
    assert all(3 <= seen.count(kind) <= 25 for kind in wanted)
    only_text = stream([view()], prompts=PromptConfig())
    assert all(only_text.batch(i).prompts.boxes is None for i in range(5))


def test_every_epoch_shows_every_case_once() -> None:
    source = stream([view(str(i)) for i in range(5)], batch_size=1, structures_per_image=1)
    order = [source.batch(i).prompts.modalities[0] for i in range(15)]
    epochs = [order[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(epoch) == list("01234") for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_views_without_structures_are_left_out() -> None:
    bare = CachedView("CT", view().image, view().labels, {}, {})
    assert [v.modality for v in stream([bare, view()]).views] == [MR]
    with pytest.raises(ValueError, match="no view has a structure"):
        stream([bare])


def test_a_flip_exchanges_left_and_right() -> None:
    original = view()
    always = STILL.model_copy(update={"mirror": 1.0})
    flipped = stream([original], always, batch_size=1, structures_per_image=3).batch(0)
    assert torch.allclose(flipped.images[0, 0], original.image.float().flip(-1), atol=1e-5)
    found = dict(zip(flipped.prompts.structures, flipped.masks.numpy(), strict=True))
    partner = {"liver": "liver", "left kidney": "right kidney", "right kidney": "left kidney"}
    assert found.keys() == partner.keys()
    for name, mask in found.items():
        assert np.array_equal(mask, masks_of(original)[partner[name]][..., ::-1]), name


# Augmentation ---------------------------------------------------------------------------


def test_augmentation_depends_on_its_seed_alone_and_keeps_masks_binary() -> None:
    strong = AugmentConfig(rotate=25, scale=0.3, translate=0.1, shear=0.1, noise=0.1, blur=0.5, bias_field=0.4)
    transform = build_augmentation(strong, SIZE)
    image, masks = view().image.float()[None], np.stack(list(masks_of(view()).values()))
    image_before, masks_before = image.clone(), masks.copy()
    first, first_masks = augment(transform, image, masks, 11)
    other, other_masks = augment(transform, image, masks, 12)
    again, again_masks = augment(transform, image, masks, 11)
    assert torch.equal(first, again)
    assert np.array_equal(first_masks, again_masks)
    assert not torch.equal(first, other)
    assert not np.array_equal(first_masks, other_masks)
    assert first_masks.dtype == bool
    assert first_masks.shape == masks.shape
    assert first.shape == image.shape
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    assert type(first) is torch.Tensor
    assert torch.equal(image, image_before)
    assert np.array_equal(masks, masks_before)
    volume = first_masks.sum((1, 2, 3)) / masks.sum((1, 2, 3))
    assert ((volume > 0.2) & (volume < 3)).all()


def test_overlapping_masks_stay_overlapping() -> None:
    whole = masks_of(view())["liver"]
    part = whole.copy()
    part[:4] = False
    transform = build_augmentation(AugmentConfig(), SIZE)
    _, moved = augment(transform, view().image.float()[None], np.stack([whole, part]), 3)
    assert moved[1].any()
    assert not (moved[1] & ~moved[0]).any()


def test_without_any_range_nothing_changes() -> None:
    image, masks = view().image.float()[None], np.stack(list(masks_of(view()).values()))
    for seed in range(4):
        found, found_masks = augment(build_augmentation(STILL, SIZE), image, masks, seed)
        torch.testing.assert_close(found, image, atol=1e-4, rtol=0)
        assert np.array_equal(found_masks, masks)


# The loop -------------------------------------------------------------------------------


def settings(steps: int, **changes: object) -> TrainConfig:
    values = {"name": "test", "budget": BudgetConfig(steps=steps), "precision": "fp32", "augment": STILL, **changes}
    return TrainConfig.model_validate(values)


def train(model: nn.Module, steps: int, **changes: object):
    config = settings(steps, optimiser=OptimiserConfig(lr=3e-3, matrices="adamw", ema=0.8), **changes)
    source = BatchStream([view()], 1, 3, PromptConfig(), config.augment, config.seed)
    return Trainer(model, source, config, torch.device("cpu")).run()


def loss_of(model: nn.Module) -> float:
    case = view()
    with torch.no_grad():
        logits = model(case.image.float()[None, None], text_prompts([list(masks_of(case))], [MR]))
    masks = torch.from_numpy(np.stack(list(masks_of(case).values())))
    return float(segmentation_loss(logits, target_on_map(masks, logits.shape[1:])))


def test_a_few_steps_lower_the_loss_of_the_base(tiny_base: SegVol) -> None:
    before = loss_of(tiny_base)
    result = train(tiny_base, 40, adapter=None)
    assert loss_of(tiny_base) < 0.8 * before
    assert result.steps == 40
    assert [row["step"] for row in result.history] == [10, 20, 30, 40]
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert all(row["minutes"] <= result.minutes for row in result.history)


def test_a_few_steps_lower_the_loss_of_an_adapter_and_leave_the_base(tiny_base: SegVol) -> None:
    frozen = copy.deepcopy(tiny_base.state_dict())
    lora = LayerAdapterConfig(rank=4, alpha=4.0, targets=["image_encoder.*", "mask_decoder.transformer.*"])
    config = AdapterConfig(layers=[lora], priors=PriorsConfig(blocks=2, modality_tokens=10))
    torch.manual_seed(0)
    model = AdaptedSegVol(tiny_base, config, list(masks_of(view())), [MR])
    before = loss_of(model)
    train(model, 40)
    assert loss_of(model) < 0.85 * before
    after = tiny_base.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())


def test_the_same_seed_trains_the_same_model(tiny_base: SegVol) -> None:
    twin = copy.deepcopy(tiny_base)
    for model in (tiny_base, twin):
        train(model, 3, adapter=None)
    pairs = zip(tiny_base.parameters(), twin.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_two_precisions_in_one_process(tiny_base: SegVol) -> None:
    for precision in ("bf16", "fp32"):
        assert train(copy.deepcopy(tiny_base), 1, adapter=None, precision=precision).steps == 1


def test_validations_see_the_average_and_leave_the_weights(tiny_base: SegVol) -> None:
    seen: list[float] = []

    def validate(model: nn.Module) -> dict[str, float]:
        seen.append(float(next(model.parameters()).detach().sum()))
        return {"val_dice": 0.5}

    class Watch(Observer):
        def logged(self, done: float, row: dict[str, float]) -> None:
            shown.append(done)

    config = settings(40, adapter=None, validations=2)
    source = BatchStream([view()], 1, 1, PromptConfig(), STILL, 0)
    trainer = Trainer(tiny_base, source, config, torch.device("cpu"))
    shown: list[float] = []
    result = trainer.run(validate, [Watch()])
    assert [row["step"] for row in result.history if "val_dice" in row] == [20, 40]
    assert len(seen) == 2
    assert shown == [0.25, 0.5, 0.75, 1.0]
    assert seen[-1] == pytest.approx(float(next(tiny_base.parameters()).detach().sum()))


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "failed"])
def test_who_looks_on_is_told_that_a_training_ended_early(tiny_base: SegVol, stopped: bool) -> None:
    told: list[tuple[str, int]] = []

    class Watch(Observer):
        def ended(self, step: int) -> None:
            told.append(("ended", step))

        def interrupted(self, step: int) -> None:
            told.append(("interrupted", step))

    config = settings(4, adapter=None, optimiser=OptimiserConfig(lr=1e-3 if stopped else 1e30, clip=math.inf))
    source = BatchStream([view()], 1, 1, PromptConfig(), STILL, 0)
    trainer = Trainer(tiny_base, source, config, torch.device("cpu"))
    stop = StopRequest()
    stop.made = stopped
    with pytest.raises(TrainingStopped if stopped else UserError):
        trainer.run(observers=[Watch()], stop=stop)
    assert [name for name, _ in told] == ["interrupted"]


def test_a_training_that_fails_at_its_end_is_told_too(tiny_base: SegVol, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Watch(Observer):
        def ended(self, step: int) -> None:
            told.append("ended")

        def interrupted(self, step: int) -> None:
            told.append("interrupted")

    def fails() -> None:
        raise RuntimeError("no memory left")

    source = BatchStream([view()], 1, 1, PromptConfig(), STILL, 0)
    trainer = Trainer(tiny_base, source, settings(1, adapter=None), torch.device("cpu"))
    monkeypatch.setattr(trainer.engine, "finish", fails)
    with pytest.raises(RuntimeError, match="no memory left"):
        trainer.run(observers=[Watch()])
    assert told == ["interrupted"]


# Configuration --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ALL_CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load_and_are_complete(path: Path) -> None:
    kind: type[TrainConfig | SliceTrainConfig] = SliceTrainConfig if named_model(path) == "sam" else TrainConfig
    config = load_config(path, kind)
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.name == path.stem
    assert set(written) == set(kind.model_fields)
    assert kind.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize("path", TRAIN_CONFIGS, ids=lambda path: path.stem)
def test_shipped_targets_match_layers(path: Path, tiny_base: SegVol) -> None:
    config = load_config(path, TrainConfig)
    if config.adapter is not None:
        AdaptedSegVol(tiny_base, config.adapter, ["liver"], [MR])


GOOD = {"name": "mine", "budget": {"steps": 5}}
WRONG = {
    "unknown key": ({**GOOD, "learning_rate": 1}, "learning_rate"),
    "unknown inner key": ({**GOOD, "optimiser": {"rate": 1}}, r"optimiser\.rate"),
    "both budgets": ({"name": "mine", "budget": {"steps": 5, "minutes": 1}}, "budget: .*either steps or minutes"),
    "no budget": ({"name": "mine", "budget": {}}, "budget: .*either steps or minutes"),
    "prompt shares": ({**GOOD, "prompts": {"text": 0.5, "box": 0.2}}, r"prompts: .*sum to 0\.7, not to 1"),
    "negative": ({**GOOD, "optimiser": {"lr": -1}}, r"optimiser\.lr: .*-1"),
    "a unet with adapter": ({**GOOD, "model": "unet"}, "set adapter to null"),
    "unknown model": ({**GOOD, "model": "sam"}, "model: .*segvol.*sam"),
    "rank zero": ({**GOOD, "adapter": {"layers": [{"rank": 0}]}}, r"adapter\.layers\.0\.rank"),
    "an adapter of nothing": (
        {**GOOD, "adapter": {"layers": [], "priors": None}},
        "adapter: .*nothing would be trained",
    ),
    "more masks than float32 has bits": ({**GOOD, "structures_per_image": 25}, r"structures_per_image: .*25"),
    "missing name": ({"budget": {"steps": 5}}, "name"),
    "a list": ([1, 2], "holds no keys"),
    "nothing": (None, "holds no keys"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_configuration_names_file_and_key(tmp_path: Path, case: str) -> None:
    values, key = WRONG[case]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(UserError, match=key) as error:
        load_config(path, TrainConfig)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_unreadable_configurations_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such configuration file"):
        load_config(tmp_path / "none.yaml", TrainConfig)
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path, TrainConfig)
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [1\n", encoding="utf-8")
    with pytest.raises(UserError, match="not readable as YAML"):
        load_config(broken, TrainConfig)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not readable as YAML"):
        load_config(broken, TrainConfig)


def test_overrides_reach_inner_keys_and_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "adapter": None}), encoding="utf-8")
    config = load_config(path, TrainConfig, {"optimiser.lr": 0.5, "budget.steps": 7, "seed": 3})
    assert (config.optimiser.lr, config.budget.steps, config.seed) == (0.5, 7, 3)
    for key in ("adapter.priors.blocks", "name.first"):
        with pytest.raises(UserError, match=f"{key}: cannot be set while"):
            load_config(path, TrainConfig, {key: 4})
    with pytest.raises(UserError, match=r"optimiser\.speed"):
        load_config(path, TrainConfig, {"optimiser.speed": 4})


def test_overrides_reach_entries_of_lists_by_number() -> None:
    config = load_config(CONFIGS / "adapt.yaml", TrainConfig, {"adapter.layers.0.rank": 4, "adapter.layers.0.alpha": 2})
    assert config.adapter is not None
    assert [(layer.rank, layer.alpha) for layer in config.adapter.layers] == [(4, 2.0)]
    for key in ("adapter.layers.1.rank", "adapter.layers.first.rank", "adapter.layers.-1.rank"):
        with pytest.raises(UserError, match=rf"{key}: adapter.layers has 1 entry, numbered from 0"):
            load_config(CONFIGS / "adapt.yaml", TrainConfig, {key: 4})


def test_entries_of_a_list_that_the_file_has_not_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nbudget: {steps: 1}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter\.layers\.0\.rank: adapter\.layers is not in the file; write it out"):
        load_config(tmp_path / "mine.yaml", TrainConfig, {"adapter.layers.0.rank": 4})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\noptimiser: {lr: 0.1}\nseed: 2\n", "line 5: seed stands in line 3 already; remove one"),
        ("optimiser:\n  lr: 0.1\n  lr: 0.2\n", "line 5: lr stands in line 4 already; remove one"),
        ("optimiser: 0.1\n", "line 3: optimiser: takes keys of its own \\(clip, ema, lr, .*value: 0.1"),
        ("base: small\ncompute:\n  parallel: fsdp\n", "line 5: fsdp shares .* set compute.parallel to ddp$"),
        ("selection: {keep: best}\n", "line 3: selection chooses .* such as 10$"),
        ("adapter: lora\n", "line 3: adapter: takes keys of its own \\(gate_by_modality, layers, .*value: lora"),
    ],
)
def test_what_is_refused_has_its_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nbudget: {steps: 1}\n" + text, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        load_config(tmp_path / "mine.yaml", TrainConfig)


def test_alpha_is_the_rank_where_it_is_left_out() -> None:
    assert LayerAdapterConfig(rank=3).alpha == 3
    assert LayerAdapterConfig(rank=3, alpha=5).alpha == 5
    assert LayerAdapterConfig.model_validate({}).alpha == LayerAdapterConfig().rank


def test_a_random_curve_is_a_function_of_intensity_and_spares_masks() -> None:
    config = AugmentConfig(
        spatial=0, curve=1, rotate=0, scale=0, translate=0, shear=0, mirror=0, intensity=0, gamma=0, noise=0, blur=0
    )
    image, masks = view().image.float()[None], np.stack(list(masks_of(view()).values()))
    out, kept = augment(build_augmentation(config, SIZE), image, masks, 3)
    assert np.array_equal(kept, masks)
    assert not torch.allclose(out, image)
    levels = {}
    for before, after in zip(image.flatten().tolist(), out.flatten().tolist(), strict=True):
        assert levels.setdefault(before, after) == after
