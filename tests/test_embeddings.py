"""Training on stored embeddings: the same as encoding each step, kept apart by what decides them, safe on disk."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import MR, SIZE, STILL, stream, view

from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, LayerAdapterConfig, PriorsConfig
from adaptmedseg.models.prompts import text_prompts
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.training.augment import build_augmentation
from adaptmedseg.training.config import AugmentConfig, BudgetConfig, OptimiserConfig, PromptConfig, TrainConfig
from adaptmedseg.training.embedding_draws import Draw, draws_of
from adaptmedseg.training.embedding_store import DamagedEmbeddingError, EmbeddingStore, StoredView, stored_view
from adaptmedseg.training.embeddings import EmbeddedViews, changes_of_images, embed_views, fill, with_frozen_encoder
from adaptmedseg.training.processes import Processes
from adaptmedseg.training.trainer import Trainer

CPU = torch.device("cpu")
STRUCTURES = ["left kidney", "liver", "right kidney"]
MOVING = AugmentConfig(rotate=20, scale=0.1, mirror=0.5, noise=0.05)
DECODER = AdapterConfig(layers=[], priors=PriorsConfig(width=32), train=["mask_decoder.*"])


def config(folder: Path, draws: int = 0, augment: AugmentConfig = STILL, **changes: object) -> TrainConfig:
    values = {
        "name": "test",
        "budget": BudgetConfig(steps=4),
        "precision": "fp32",
        "augment": augment,
        "adapter": DECODER,
        "optimiser": OptimiserConfig(lr=1e-3, matrices="adamw"),
        "data": {"embeddings": {"folder": str(folder), "draws": draws}},
    }
    return TrainConfig.model_validate(values | changes)


def adapted(base: SegVol, adapter: AdapterConfig = DECODER) -> AdaptedSegVol:
    torch.manual_seed(1)
    return AdaptedSegVol(copy.deepcopy(base), adapter, STRUCTURES, [MR, "CT"])


def embed(settings: TrainConfig, model: AdaptedSegVol, said: list[str] | None = None) -> EmbeddedViews:
    tell = [].append if said is None else said.append
    return embed_views([view(), view("CT", 3)], settings, model, CPU, Processes(), tell)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


# The law ------------------------------------------------------------------------------------------


def test_training_on_stored_embeddings_is_training(tiny_base: SegVol, tmp_path: Path) -> None:
    settings = config(tmp_path)
    found = []
    for stored in (False, True):
        model = adapted(tiny_base)
        source = stream([view(), view("CT", 3)], STILL, structures_per_image=3, prompts=PromptConfig())
        if stored:
            source.embeddings = embed(settings, model)
        encoded: list[int] = []
        hook = model.base.image_encoder.register_forward_hook(lambda *_, count=encoded: count.append(1))
        result = Trainer(model, source, settings, CPU).run()
        assert len(encoded) == (0 if stored else 4)
        hook.remove()
        with torch.no_grad():
            logits = model(view().image.float()[None, None], text_prompts([STRUCTURES], [MR]))
        found.append((result.history[-1]["loss"], logits))
    with torch.no_grad():
        before = adapted(tiny_base)(view().image.float()[None, None], text_prompts([STRUCTURES], [MR]))
    (loss, plain), (other_loss, other) = found
    assert loss == pytest.approx(other_loss, rel=1e-4)
    # AdamW moves what has no gradient (biases of keys) by rounding alone: the answers agree, not every number.
    assert (other - plain).abs().max() < 0.01 * (plain - before).abs().max()


def test_a_stored_embedding_is_the_encoders(tiny_base: SegVol, tmp_path: Path) -> None:
    model = adapted(tiny_base)
    stored = embed(config(tmp_path), model).draw(0, np.random.default_rng(0))
    with torch.no_grad():
        expected = tiny_base.encode_image(view().image.float()[None, None])[0]
    assert stored.embedding.dtype == torch.float32
    torch.testing.assert_close(stored.embedding, expected)
    assert list(stored.names) == STRUCTURES
    for name in STRUCTURES:
        assert np.array_equal(stored.mask(name), view().mask(name))
    narrow = embed(config(tmp_path, precision="bf16"), model).draw(0, np.random.default_rng(0))
    assert narrow.embedding.dtype == torch.float16
    torch.testing.assert_close(narrow.embedding.float(), expected, atol=0.05, rtol=0.05)


def test_draws_are_augmented_with_their_masks(tiny_base: SegVol, tmp_path: Path) -> None:
    settings = config(tmp_path, 6, MOVING)
    model = adapted(tiny_base)
    views = embed(settings, model)
    transform = build_augmentation(MOVING, SIZE)
    seen = []
    for draw, key in zip(draws_of([view(), view("CT", 3)], settings, model)[0], views.keys[0], strict=True):
        image, masks, names = draw.make(transform, MOVING.mirror)
        stored = views.store.read(key)
        with torch.no_grad():
            torch.testing.assert_close(stored.embedding, tiny_base.encode_image(image[None])[0], atol=1e-5, rtol=1e-4)
        assert sorted(stored.names) == STRUCTURES
        assert all(np.array_equal(stored.mask(name), mask) for name, mask in zip(names, masks, strict=True))
        assert 0.5 < masks.sum() / sum(view().mask(name).sum() for name in STRUCTURES) < 1.6
        seen.append((tuple(names), image))
    assert len({names for names, _ in seen}) == 2  # some are mirrored: left and right exchanged
    assert all(not torch.equal(a, b) for i, (_, a) in enumerate(seen) for _, b in seen[:i])


def test_more_structures_than_move_together_move_alike() -> None:
    masks = {f"s{i:02}": view().mask("liver") for i in range(30)}
    full = view()
    labels = np.zeros(SIZE, np.uint64)
    for bit, mask in enumerate(masks.values()):
        labels |= mask.astype(np.uint64) << np.uint64(bit)
    bits = {name: bit for bit, name in enumerate(masks)}
    many = type(full)(MR, full.image, labels, bits, {name: name for name in masks})
    _, moved, names = Draw(many, 0, 3, "").make(build_augmentation(MOVING, SIZE), 0.0)
    assert names == sorted(masks)
    assert all(np.array_equal(mask, moved[0]) for mask in moved)


# What decides a key -------------------------------------------------------------------------------


def test_keys_tell_apart_all_that_decides_an_embedding(tiny_base: SegVol, tmp_path: Path) -> None:
    def key(settings: TrainConfig, model: AdaptedSegVol, case: object = None) -> str:
        return draws_of([case or view()], settings, model)[0][0].key  # type: ignore[list-item]

    model, plain = adapted(tiny_base), config(tmp_path)
    other = adapted(tiny_base)
    with torch.no_grad():
        other.base.image_encoder.norm.weight[0] += 1e-3
    decoder = adapted(tiny_base)
    with torch.no_grad():
        for parameter in decoder.base.mask_decoder.parameters():
            parameter.add_(1.0)
    brighter = view()
    brighter.image[0, 0, 0] += 0.5
    relabelled = view()
    relabelled.labels[0, 0, 0] |= 1
    keys = [
        key(plain, model),
        key(plain, other),
        key(config(tmp_path, precision="bf16"), model),
        key(plain, model, brighter),
        key(plain, model, relabelled),
        key(config(tmp_path, 1), model),
        key(config(tmp_path, 1, seed=5), model),
        key(config(tmp_path, 1, MOVING), model),
    ]
    assert len(set(keys)) == len(keys)
    assert key(plain, model) == key(plain, decoder) == key(config(tmp_path / "elsewhere", seed=5), model)


def test_other_weights_are_never_mixed(tiny_base: SegVol, tmp_path: Path) -> None:
    embed(config(tmp_path), adapted(tiny_base))
    assert len(files(tmp_path)) == 2
    other = adapted(tiny_base)
    with torch.no_grad():
        for parameter in other.base.image_encoder.parameters():
            parameter.mul_(1.1)
    stored = embed(config(tmp_path), other).draw(0, np.random.default_rng(0))
    with torch.no_grad():
        torch.testing.assert_close(stored.embedding, other.base.encode_image(view().image.float()[None, None])[0])
    assert len(files(tmp_path)) == 4


# On disk ------------------------------------------------------------------------------------------


def test_what_is_there_is_not_computed_again(tiny_base: SegVol, tmp_path: Path) -> None:
    said: list[str] = []
    embed(config(tmp_path), adapted(tiny_base), said)
    assert said == [f"computing 2 of 2 image embeddings, kept in {tmp_path}"]
    before = {path: path.stat().st_mtime_ns for path in files(tmp_path)}
    files(tmp_path)[0].unlink()
    embed(config(tmp_path), adapted(tiny_base), said)
    assert said[1:] == [f"computing 1 of 2 image embeddings, kept in {tmp_path}"]
    after = {path: path.stat().st_mtime_ns for path in files(tmp_path)}
    assert before.keys() == after.keys()
    assert sum(before[path] == after[path] for path in before) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "another", "empty"])
def test_a_damaged_file_is_told_of_and_computed_again(tiny_base: SegVol, tmp_path: Path, damage: str) -> None:
    embed(config(tmp_path), adapted(tiny_base))
    broken, other = files(tmp_path)
    whole, view_before = broken.read_bytes(), EmbeddingStore(tmp_path).read(broken.stem)
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    content = {"truncated": whole[:-100], "flipped": flipped, "another": other.read_bytes(), "empty": b""}
    broken.write_bytes(content[damage])
    said: list[str] = []
    embed(config(tmp_path), adapted(tiny_base), said)
    assert str(broken) in said[0]
    assert "is computed again" in said[0]
    again = EmbeddingStore(tmp_path).read(broken.stem)
    assert torch.equal(again.embedding, view_before.embedding)
    assert torch.equal(again.packed, view_before.packed)
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_damage_while_training_is_told(tiny_base: SegVol, tmp_path: Path) -> None:
    embed(config(tmp_path), adapted(tiny_base))
    keys = [[path.stem] for path in files(tmp_path)]
    files(tmp_path)[0].write_bytes(b"nothing")
    with pytest.raises(UserError, match="start again, which computes it anew"):
        EmbeddedViews(EmbeddingStore(tmp_path), keys).draw(0, np.random.default_rng(0))


def test_a_folder_that_cannot_be_written_is_told(tiny_base: SegVol, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"another data\.embeddings\.folder"):
        embed(config(tmp_path / "file"), adapted(tiny_base))


def some_view(value: float) -> StoredView:
    return stored_view(torch.full((4, 2, 2, 2), value), np.ones((1, 2, 4, 4), bool), ["liver"])


def _fill(folder: Path, keys: list[str], log: Path) -> None:
    def compute(draw: Draw) -> StoredView:
        with log.open("a", encoding="utf-8") as file:
            file.write(draw.key + "\n")
        return some_view(float(int(draw.key[:2], 16)))

    fill(EmbeddingStore(folder), [Draw(view(), None, 0, key) for key in keys], compute, lambda text: None)


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    keys = [f"{i:02x}" + "0" * 62 for i in range(40)]
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    workers = [context.Process(target=_fill, args=(tmp_path / "store", keys, log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    store = EmbeddingStore(tmp_path / "store")
    assert all(float(store.read(key).embedding[0, 0, 0, 0]) == int(key[:2], 16) for key in keys)
    assert sorted(log.read_text(encoding="utf-8").split()) == keys  # none was computed twice


def test_a_view_of_another_name_is_not_taken(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    store.write("a" * 64, some_view(1.0))
    store.path("ab" * 32).parent.mkdir(exist_ok=True)
    store.path("a" * 64).rename(store.path("ab" * 32))
    with pytest.raises(DamagedEmbeddingError, match="another view"):
        store.read("ab" * 32)
    assert not store.holds("a" * 64)


# What forbids it ----------------------------------------------------------------------------------


def test_an_adapter_in_the_encoder_forbids_it(tiny_base: SegVol, tmp_path: Path) -> None:
    for adapter, name in [
        (AdapterConfig(layers=[LayerAdapterConfig(rank=2)], priors=None), r"rslora\.image_encoder"),
        (AdapterConfig(layers=[], priors=None, train=["image_encoder.norm.*"]), r"train\.image_encoder"),
    ]:
        with pytest.raises(UserError, match=rf"the adapter trains .*{name}.*target mask_decoder\.\* alone"):
            with_frozen_encoder(config(tmp_path), adapted(tiny_base, adapter))
    with pytest.raises(UserError, match="all weights are trained"):
        with_frozen_encoder(config(tmp_path), tiny_base)
    model = adapted(tiny_base)
    assert with_frozen_encoder(config(tmp_path), model) is model


def test_augmentation_and_windows_forbid_it_unless_drawn_beforehand(tiny_base: SegVol, tmp_path: Path) -> None:
    model = adapted(tiny_base)
    with pytest.raises(UserError, match=r"augment\.rotate, augment\.scale, .*augment\.noise.* data\.embeddings\.draws"):
        with_frozen_encoder(config(tmp_path, augment=MOVING), model)
    assert with_frozen_encoder(config(tmp_path, 4, MOVING), model) is model
    closer = config(tmp_path)
    closer = closer.model_copy(update={"data": closer.data.model_copy(update={"zoom_in": 0.5})})
    with pytest.raises(UserError, match=r"data\.zoom_in shows another window"):
        with_frozen_encoder(closer, model)


def test_every_change_of_images_is_known() -> None:
    assert changes_of_images(STILL) == []
    neutral = dict.fromkeys(AugmentConfig.model_fields, 0.0)
    assert changes_of_images(AugmentConfig(**neutral)) == []
    for name in AugmentConfig.model_fields:
        if name != "spatial":  # the chance of the four changes of place
            assert changes_of_images(AugmentConfig(**{**neutral, "spatial": 1.0, name: 0.1})) == [name]


def test_a_training_says_what_it_asks(tiny_base: SegVol, tmp_path: Path) -> None:
    source = stream([view()], STILL, prompts=PromptConfig())
    source.embeddings = embed_views([view()], config(tmp_path), adapted(tiny_base), CPU, Processes(), [].append)
    batch = source.batch(0)
    assert batch.embedded
    assert batch.images.shape == (2, 32, 2, 4, 4)
    assert batch.question(CPU).embedded
