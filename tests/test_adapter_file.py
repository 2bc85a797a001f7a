"""The adapter file: its round trip, its card, and every way in which it can be wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_cases import CT, EVERYWHERE, KINDS, MR, TASKS, WHOLE, adapted, answer, one_kind, perturb
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from adaptmedseg.adapters.card import About, seal_of
from adaptmedseg.adapters.compare import changes, compare_changes, differences
from adaptmedseg.adapters.counts import PartCount, count_parameters, kinds_of, total
from adaptmedseg.adapters.file import ADAPTER_FORMAT, add_from_file, load_adapter, read_adapter, read_card, save_adapter
from adaptmedseg.adapters.witness import IMAGE, LOGITS, deviation, make_witness
from adaptmedseg.checkpoints.store import save_base, weights_hash
from adaptmedseg.data.normalise import Normalisation
from adaptmedseg.errors import UserError
from adaptmedseg.inference.loading import load_model
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, LayerAdapterConfig, PriorsConfig
from adaptmedseg.models.segvol import RELEASED, SegVol, SegVolConfig
from adaptmedseg.modules.mask_decoder import MaskDecoder

ABOUT = About("mine", "CC0 data", (3.0, 0.8, 0.75), Normalisation(rule="percentile"))
ALL_KINDS = AdapterConfig(
    layers=[LayerAdapterConfig(kind=kind, rank=2, targets=EVERYWHERE) for kind in KINDS],
    priors=PriorsConfig(blocks=1, modality_tokens=2),
    train=WHOLE,
)
Content = tuple[dict[str, Tensor], dict[str, str]]


def fresh_base(config: SegVolConfig, seed: int = 0) -> SegVol:
    torch.manual_seed(seed)
    return SegVol(config).eval()


def trained(base: SegVol, config: AdapterConfig = ALL_KINDS) -> AdaptedSegVol:
    return perturb(adapted(base, config, name="mine"))


@pytest.fixture
def file(tmp_path: Path, tiny_base: SegVol) -> Path:
    path = tmp_path / "mine.safetensors"
    save_adapter(path, trained(tiny_base), "tiny", {"steps": 3}, ABOUT)
    return path


def content(path: Path) -> Content:
    with safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def rewrite(path: Path, change: Callable[[dict, dict[str, Tensor]], None], *, sealed: bool = False) -> None:
    """Change card and tensors of a file; with `sealed`, as one who knows how the seal is made."""
    tensors, metadata = content(path)
    card = json.loads(metadata["card"])
    change(card, tensors)
    metadata["card"] = json.dumps(card)
    if sealed:
        metadata["sha256"] = seal_of(metadata["card"], tensors)
    save_file(tensors, path, metadata)


def test_it_comes_back_equal_to_the_bit(file: Path, tiny_base: SegVol, tiny_config: SegVolConfig) -> None:
    before = trained(fresh_base(tiny_config))
    exact = answer(before, tiny_base)
    save_adapter(file, before, "tiny", {}, ABOUT)
    rounded = answer(before, tiny_base)
    loaded = load_adapter(file, fresh_base(tiny_config)).eval()
    assert torch.equal(answer(loaded, tiny_base), rounded)
    assert not torch.equal(rounded, exact), "it was rounded to what the file holds"
    torch.testing.assert_close(rounded, exact, atol=5e-3 * float(exact.abs().max()), rtol=0)
    assert torch.equal(answer(loaded, tiny_base, CT), answer(fresh_base(tiny_config), tiny_base, CT))
    assert (loaded.name, loaded.tasks, loaded.modalities, loaded.config) == ("mine", TASKS, [MR], ALL_KINDS)


def test_it_holds_trained_tensors_in_half_precision_and_the_witness(file: Path, tiny_base: SegVol) -> None:
    tensors, _ = content(file)
    assert tensors.keys() == trained(tiny_base).trained_tensors().keys() | {IMAGE, LOGITS}
    assert {name for name, tensor in tensors.items() if tensor.dtype != torch.float16} == {LOGITS}


def test_its_card_tells_what_is_needed_to_use_it(file: Path, tiny_base: SegVol, tiny_config: SegVolConfig) -> None:
    card = read_card(file)
    assert (card.name, card.base, card.base_hash) == ("mine", "tiny", weights_hash(fresh_base(tiny_config)))
    assert (card.tasks, card.modalities, card.config) == (TASKS, [MR], ALL_KINDS)
    seen = card.preprocessing
    assert (seen.spatial_size, seen.resize, seen.normalisation.rule) == (
        tiny_config.spatial_size,
        "smooth",
        "percentile",
    )
    assert (card.spacing_mm, card.licence, card.training) == ((3.0, 0.8, 0.75), "CC0 data", {"steps": 3})
    assert len(card.created) == len("2026-01-31")


def test_a_merged_or_scaled_model_is_saved_right_or_not_at_all(tmp_path: Path, tiny_config: SegVolConfig) -> None:
    model = trained(fresh_base(tiny_config), one_kind("lora"))
    model.adapters.merge()
    save_adapter(tmp_path / "merged.safetensors", model, "tiny", {})
    load_adapter(tmp_path / "merged.safetensors", fresh_base(tiny_config))
    model.adapters.unmerge()
    model.set_scale("mine", 0.5)
    with pytest.raises(UserError, match=r"scaled by 0\.5; set its scale to 1"):
        save_adapter(tmp_path / "scaled.safetensors", model, "tiny", {})
    assert [path.name for path in tmp_path.iterdir()] == ["merged.safetensors"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e6])
def test_a_training_that_went_astray_is_not_written(file: Path, tiny_base: SegVol, value: float) -> None:
    before = file.read_bytes()
    model = trained(tiny_base)
    with torch.no_grad():
        next(iter(model.trained_tensors().values())).view(-1)[0] = value
    with pytest.raises(UserError, match=r"not finite or beyond float16.*smaller optimiser\.lr"):
        save_adapter(file, model, "tiny", {})
    assert file.read_bytes() == before


# What is refused ------------------------------------------------------------------------


def flipped_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)


def edited(key: str, value: object) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        rewrite(path, lambda card, tensors: card.update({key: value}))

    spoil.__name__ = f"edited_{key}"
    return spoil


def edited_config(path: Path) -> None:
    rewrite(path, lambda card, tensors: card["config"].update(gate_by_modality=False))


def a_tensor_more(path: Path) -> None:
    rewrite(path, lambda card, tensors: tensors.update(stray=torch.zeros(2)))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_the_first_version(path: Path) -> None:
    tensors, metadata = content(path)
    save_file(tensors, path, metadata | {"format": "adaptmedseg-adapter-1"})


def without_seal(path: Path) -> None:
    tensors, metadata = content(path)
    save_file(tensors, path, {key: value for key, value in metadata.items() if key != "sha256"})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (flipped_bit, "changed after it was written.*copy the file again"),
        (edited("tasks", ["prostate", "bladder"]), "changed after it was written"),
        (edited("modalities", ["CT"]), "changed after it was written"),
        (edited("base_hash", "0" * 64), "changed after it was written"),
        (edited_config, "changed after it was written"),
        (a_tensor_more, "changed after it was written"),
        (edited("tasks", ["prostate", "prostate"]), "card is damaged"),
        (edited("surprise", 1), "card is damaged"),
        (edited("preprocessing", {"spatial_size": [8, 32, 32], "resize": "smooth", "normalisation": {}}), "changed"),
        (cut, "copy or download it again"),
        (of_the_first_version, f"holds adaptmedseg-adapter-1, .*{ADAPTER_FORMAT}.*train the adapter again"),
        (without_seal, "card is damaged"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_tampered_file_is_refused_in_a_sentence(
    file: Path, tiny_base: SegVol, tiny_config: SegVolConfig, spoil: Callable[[Path], None], sentence: str
) -> None:
    spoil(file)
    with pytest.raises(UserError, match=sentence) as error:
        load_adapter(file, fresh_base(tiny_config))
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda card, tensors: card["tasks"].append("spleen"), "don't fit its own card"),
        (lambda card, tensors: card["modalities"].append("CT"), "don't fit its own card"),
        (lambda card, tensors: tensors.pop(IMAGE), "don't fit its own card"),
        (lambda card, tensors: card["config"]["layers"][0].update(alpha=9.0), "does not compute what it computed"),
        (lambda card, tensors: tensors[LOGITS].add_(0.1), "does not compute what it computed"),
        (
            lambda card, tensors: card["preprocessing"].update(resize="nearest"),
            "trained with resize nearest",
        ),
    ],
)
def test_what_a_seal_cannot_tell_is_found_too(
    file: Path, tiny_config: SegVolConfig, change: Callable[[dict, dict[str, Tensor]], None], sentence: str
) -> None:
    rewrite(file, change, sealed=True)
    with pytest.raises(UserError, match=sentence):
        load_adapter(file, fresh_base(tiny_config))


def test_the_wrong_base_is_refused_with_both_hashes(file: Path, tiny_config: SegVolConfig) -> None:
    right, wrong = (weights_hash(fresh_base(tiny_config, seed))[:12] for seed in (0, 9))
    with pytest.raises(UserError, match=f"{right}.*'tiny'.*{wrong}.*--base"):
        load_adapter(file, fresh_base(tiny_config, 9))


def test_code_that_computes_something_else_is_found(
    file: Path, tiny_config: SegVolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = MaskDecoder.mask_logits
    monkeypatch.setattr(MaskDecoder, "mask_logits", lambda *args: 1.01 * logits(*args))
    with pytest.raises(UserError, match="does not compute what it computed"):
        load_adapter(file, fresh_base(tiny_config))


def test_rounding_of_another_machine_is_no_deviation(tiny_base: SegVol) -> None:
    model = trained(tiny_base)
    witness = make_witness(model)
    assert deviation(model, witness) == 0
    assert deviation(model, {**witness, LOGITS: witness[LOGITS] * (1 + 1e-5)}) < 0.1
    assert deviation(model, {**witness, LOGITS: witness[LOGITS] * 1.01}) > 1
    assert deviation(model, {**witness, LOGITS: witness[LOGITS][:, :1]}) == math.inf


# More than one --------------------------------------------------------------------------


def test_a_second_file_is_put_beside_the_first(file: Path, tiny_base: SegVol, tiny_config: SegVolConfig) -> None:
    second = file.with_name("second.safetensors")
    other = perturb(adapted(fresh_base(tiny_config), one_kind("rslora"), name="other"), seed=8)
    save_adapter(second, other, "tiny", {}, About("other"))
    model = load_adapter(file, fresh_base(tiny_config)).eval()
    alone = answer(model, tiny_base)
    assert add_from_file(second, model) == "other"
    assert (answer(model, tiny_base) - alone).abs().max() > 1e-3
    with model.adapters.enabled(["mine"]):
        assert torch.equal(answer(model, tiny_base), alone)
    with model.adapters.enabled(["other"]):
        assert torch.equal(answer(model, tiny_base), answer(other, tiny_base))
    with pytest.raises(UserError, match="'mine': has tokens"):
        add_from_file(file, load_adapter(second, fresh_base(tiny_config)))
    with pytest.raises(UserError, match="was trained on a base with hash"):
        add_from_file(second, adapted(fresh_base(tiny_config, 9), one_kind("lora")))


def test_an_earlier_file_as_a_model_is_told(file: Path, tiny_base: SegVol) -> None:
    of_the_first_version(file)
    with pytest.raises(UserError, match="train the adapter again"):
        load_model(str(file))


def test_a_file_loads_as_a_model_with_its_base_found(tmp_path: Path, tiny_config: SegVolConfig) -> None:
    base = tmp_path / "base.safetensors"
    save_base(base, fresh_base(tiny_config), {"name": "tiny"})
    save_adapter(tmp_path / "a.safetensors", trained(fresh_base(tiny_config)), str(base), {}, ABOUT)
    loaded = load_model(str(tmp_path / "a.safetensors"))
    assert loaded.gated
    assert (loaded.normalisation_of(MR).rule, loaded.normalisation_of(CT).rule) == ("percentile", "segvol")


# Counting and comparing -----------------------------------------------------------------


def test_parameters_are_counted_by_kind_and_part(tiny_base: SegVol) -> None:
    layers = [LayerAdapterConfig(rank=3, targets=["image_encoder.blocks.*.attn.out_proj"])]
    config = AdapterConfig(layers=layers, priors=None, train=["mask_decoder.iou_token.*", "mask_decoder.mask_tokens.*"])
    counts = count_parameters(adapted(tiny_base, config).trained_tensors())
    width = tiny_base.config.embed_dim
    assert counts == [
        PartCount("rslora", "image_encoder", 4, 2 * 2 * 3 * width, 4 * 2 * 2 * 3 * width),
        PartCount("train", "mask_decoder", 2, 5 * width, 4 * 5 * width),
    ]
    assert total(counts) == sum(tensor.numel() for tensor in adapted(tiny_base, config).trained_tensors().values())
    assert kinds_of(counts) == ["rslora", "train"]


def test_a_released_size_adapter_of_rank_8_is_small() -> None:
    targets = ["image_encoder.blocks.*", "mask_decoder.transformer.*"]
    config = AdapterConfig(layers=[LayerAdapterConfig(rank=8, targets=targets)], priors=None)
    with torch.device("meta"):
        model = AdaptedSegVol(SegVol(RELEASED), config, [f"task {i}" for i in range(21)], ["CT", MR])
    stored = 2 * total(count_parameters(model.trained_tensors()))
    assert stored < 4e6


@pytest.mark.parametrize("kind", ["lora", "rslora", "qv_lora", "loose_lora"])
def test_adapters_are_compared_by_the_changes_they_make(
    tmp_path: Path, tiny_base: SegVol, tiny_config: SegVolConfig, kind: str
) -> None:
    model = trained(fresh_base(tiny_config), one_kind(kind, train=WHOLE))  # type: ignore[arg-type]
    path = tmp_path / "a.safetensors"
    save_adapter(path, model, "tiny", {})
    found = changes(*read_adapter(path))
    deltas = model.adapters["mine"].deltas()
    for part in ("image_encoder", "mask_decoder"):
        norm = math.sqrt(sum(float(d.double().square().sum()) for name, d in deltas.items() if name.startswith(part)))
        own = [change for name, change in found.items() if name.startswith(f"layers.{part}")]
        assert math.sqrt(sum(change.dot(change) for change in own)) == pytest.approx(norm, rel=1e-4)
    for part in compare_changes(found, found):
        assert (part.apart, part.cosine, part.ratio) == (0, pytest.approx(1), pytest.approx(1))


def test_other_factors_of_the_same_product_are_the_same_change(file: Path) -> None:
    card, tensors = read_adapter(file)
    turned = dict(tensors)
    for name in tensors:
        if name.startswith("rslora") and name.endswith(".up"):
            down = name.removesuffix("up") + "down"
            turned[name], turned[down] = -2 * tensors[name].float(), -0.5 * tensors[down].float()
    parts = {part.part: part for part in compare_changes(changes(card, tensors), changes(card, turned))}
    assert parts["layers image_encoder"].cosine == pytest.approx(1)
    assert parts["layers image_encoder"].ratio == pytest.approx(1)
    opposite = {name: -tensor.float() if name.startswith("train.") else tensor for name, tensor in tensors.items()}
    parts = {part.part: part for part in compare_changes(changes(card, tensors), changes(card, opposite))}
    assert parts["train mask_decoder"].cosine == pytest.approx(-1)
    fewer = {name: tensor for name, tensor in tensors.items() if not name.startswith("train.mask_decoder")}
    parts = {part.part: part for part in compare_changes(changes(card, tensors), changes(card, fewer))}
    assert parts["train mask_decoder"].shared == 0
    assert math.isnan(parts["train mask_decoder"].cosine)


def test_cards_differ_by_key(file: Path) -> None:
    card = read_card(file)
    layers = [card.config.layers[0].model_copy(update={"rank": 7}), *card.config.layers[1:]]
    other = card.model_copy(update={"config": card.config.model_copy(update={"layers": layers}), "name": "other"})
    assert differences(card, other) == {"config.layers.0.rank": (2, 7)}
    assert differences(card, card) == {}
