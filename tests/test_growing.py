"""Growing: more tasks and modalities for a trained model; old answers to the bit; tokens that learn alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError
from small_cases import Outcome, call, small_folder
from test_adapted import perturb, views
from test_cli import CONFIG, write_base
from test_priors import ANSWERS, FUSIONS, HEADS, KINDS
from test_training import MR, loss_of, masks_of, settings, view
from torch import Tensor

from adaptmedseg.adapters.card import About
from adaptmedseg.adapters.file import load_adapter, save_adapter
from adaptmedseg.checkpoints.store import load_base
from adaptmedseg.data.normalise import Normalisation
from adaptmedseg.inference.loading import load_model
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, LayerAdapterConfig, PriorsConfig
from adaptmedseg.models.growing import frozen_numbers, grow, only_tokens_learn
from adaptmedseg.models.prompts import text_prompts
from adaptmedseg.models.segvol import SegVol
from adaptmedseg.modules.priors.heads import NEVER_SEEN
from adaptmedseg.training.config import GrowConfig, OptimiserConfig, PromptConfig, TrainConfig
from adaptmedseg.training.run import settled
from adaptmedseg.training.sampling import BatchStream
from adaptmedseg.training.trainer import Trainer

OLD = ["liver", "spleen"]
T1 = "T1 MRI"
LAYERS = [LayerAdapterConfig(rank=2, targets=["image_encoder.*", "mask_decoder.*q_proj"])]


def model_with(base: SegVol, *, prompt_tokens: bool = False, layers: bool = True, **priors: object) -> AdaptedSegVol:
    torch.manual_seed(1)
    config = AdapterConfig(
        layers=LAYERS if layers else [],
        priors=PriorsConfig.model_validate({"blocks": 1, "modality_tokens": 2} | priors) if priors else None,
        prompt_tokens=prompt_tokens,
    )
    model = AdaptedSegVol(base, config, OLD, [MR]).eval()
    perturb(model.trained_tensors())
    return model


def answers(model: AdaptedSegVol, names: list[str], modality: str = MR) -> Tensor:
    with torch.inference_mode():
        return model(views(1, model.base), text_prompts([names], [modality]))


def train_tokens(model: AdaptedSegVol, old: tuple[int, int], steps: int = 30, lr: float = 0.03) -> None:
    config = settings(steps, optimiser=OptimiserConfig(lr=lr, matrices="adamw", ema=0.8))
    source = BatchStream([view()], 1, 3, PromptConfig(), config.augment, config.seed)
    with only_tokens_learn(model, *old):
        Trainer(model, source, config, torch.device("cpu")).run()


@pytest.mark.parametrize(("fusion", "head", "kind"), KINDS)
def test_growing_leaves_old_answers_to_the_bit(tiny_base: SegVol, fusion: str, head: str, kind: str) -> None:
    model = model_with(tiny_base, fusion=fusion, head=head, answers=kind, prompt_tokens=True)
    before = answers(model, [*OLD, "colon"])
    grow(model, {"bladder": "liver", "uterus": None}, {T1: MR})
    assert torch.equal(answers(model, [*OLD, "colon"]), before)
    assert (model.tasks, model.modalities) == ([*OLD, "bladder", "uterus"], [MR, T1])
    # A relative's token starts as a copy: by its own tokens, liver on T1 is what it is on T2.
    assert torch.equal(answers(model, OLD, T1), answers(model, OLD, MR))


@pytest.mark.parametrize(("fusion", "head"), [(f, h) for f in FUSIONS for h in HEADS])
def test_tokens_that_learn_alone_change_nothing_else(tiny_base: SegVol, fusion: str, head: str) -> None:
    model = model_with(tiny_base, fusion=fusion, head=head, answers="independent")
    grow(model, {"left kidney": None, "right kidney": "spleen"}, {})
    old, kept = answers(model, OLD), copy.deepcopy(model.state_dict())
    before = loss_of(model)
    train_tokens(model, (2, 1))
    assert loss_of(model) < before
    assert torch.equal(answers(model, OLD), old)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, kept[name])]
    assert changed == ["priors.pool.task_prior"]
    moved = (model.state_dict()[changed[0]] - kept[changed[0]]).abs().amax(1) > 0
    assert moved.tolist() == [False, False, True, True, False]
    assert all(p.requires_grad for p in model.trained_tensors().values())
    assert not any(p.requires_grad for p in tiny_base.parameters())


def test_a_new_modality_learns_its_tokens_alone(tiny_base: SegVol) -> None:
    model = model_with(tiny_base, fusion="two-way", layers=False)
    grow(model, {}, {T1: None})
    old, kept = answers(model, OLD), model.priors.pool.modality_prior.clone()  # type: ignore[union-attr]
    config = settings(10, optimiser=OptimiserConfig(lr=0.03, matrices="adamw", ema=0.8))
    source = BatchStream([view(T1)], 1, 1, PromptConfig(), config.augment, 0)
    with only_tokens_learn(model, 2, 1):
        assert frozen_numbers(model) == 2 * 32 + 2 * 32
        Trainer(model, source, config, torch.device("cpu")).run()
    assert frozen_numbers(model) == 0
    assert torch.equal(answers(model, OLD), old)
    moved = (model.priors.pool.modality_prior - kept).abs().amax((1, 2)) > 0  # type: ignore[union-attr]
    assert moved.tolist() == [False, True]


def test_prompt_tokens_on_a_plain_base_learn_from_one_case(tiny_base: SegVol) -> None:
    frozen = copy.deepcopy(tiny_base.state_dict())
    config = AdapterConfig(layers=[], priors=None, prompt_tokens=True)
    model = AdaptedSegVol(tiny_base, config, list(masks_of(view())), [MR])
    before = loss_of(model)
    train_tokens(model, (0, 0), steps=60)
    assert loss_of(model) < 0.95 * before
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in tiny_base.state_dict().items())


def test_everything_learns_again_after_an_error(tiny_base: SegVol) -> None:
    model = model_with(tiny_base, fusion="joint")
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    inside: set[str] = set()

    def stop() -> None:
        with only_tokens_learn(model, 2, 1):
            inside.update(name for name, p in model.named_parameters() if p.requires_grad)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stop()
    assert inside == {"priors.pool.task_prior", "priors.pool.modality_prior"}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learning
    assert frozen_numbers(model) == 0


def test_a_grown_modality_is_not_named_before_it_was_learnt(tiny_base: SegVol) -> None:
    model = model_with(tiny_base, fusion="two-way")
    assert model.priors is not None
    assert model.priors.modality_head is not None
    model.priors.modality_head.start_learning([0])
    grow(model, {}, {T1: MR, "CT": None})
    bias = model.priors.modality_head.classifier.fc2.bias
    assert model.priors.modality_head.seen().tolist() == [True, False, False]
    assert bias[1:].tolist() == [NEVER_SEEN] * 2
    with torch.inference_mode():
        assert model.modality_shares(model.embed(views(1, tiny_base), [MR])) == {}


def test_what_images_look_like_does_not_change_by_growing(tiny_base: SegVol) -> None:
    model = AdaptedSegVol(tiny_base, AdapterConfig(), ["a"], [MR, "CT"])
    assert model.priors is not None
    assert model.priors.modality_head is not None
    model.priors.modality_head.start_learning([0, 1])
    torch.nn.init.normal_(model.priors.modality_head.classifier.fc2.weight)
    with torch.inference_mode():
        embedding = model.embed(views(1, tiny_base), [MR])
        before = model.modality_shares(embedding)
        grow(model, {}, {T1: None})
        assert model.modality_shares(embedding) == pytest.approx(before, abs=1e-6)
    assert before.keys() == {MR, "CT"}


WRONG_GROWTH = {
    "known task": ({"liver": None}, {}, "'liver' has a token already"),
    "unknown relative": ({"uterus": "prostate"}, {}, "'prostate', from which 'uterus' is to start, has no token"),
    "known modality": ({}, {MR: None}, "has a token already"),
}


@pytest.mark.parametrize("case", WRONG_GROWTH)
def test_impossible_growth_is_refused_and_changes_nothing(tiny_base: SegVol, case: str) -> None:
    tasks, looks, words = WRONG_GROWTH[case]
    model = model_with(tiny_base, fusion="two-way")
    before = answers(model, OLD)
    with pytest.raises(ValueError, match=words):
        grow(model, tasks, looks)
    assert model.tasks == OLD
    assert torch.equal(answers(model, OLD), before)


def test_an_adapter_without_tokens_cannot_grow(tiny_base: SegVol) -> None:
    with pytest.raises(ValueError, match="nothing to add to"):
        grow(model_with(tiny_base), {"uterus": None}, {})


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_grown_model_survives_its_file(tiny_base: SegVol, tmp_path: Path, kind: str) -> None:
    twin = copy.deepcopy(tiny_base)
    model = model_with(tiny_base, fusion="joint", answers=kind, prompt_tokens=True)
    grow(model, {"bladder": "liver"}, {T1: None})
    perturb(model.trained_tensors(), seed=5)
    save_adapter(tmp_path / "grown.safetensors", model, "tiny", {})
    loaded = load_adapter(tmp_path / "grown.safetensors", twin).eval()
    for modality in (MR, T1):
        found, expected = (answers(m, [*OLD, "bladder"], modality) for m in (loaded, model))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"grow": {"adapter": "a"}, "adapter": None},
        {"grow": {"adapter": "a", "tasks": {"uterus": "fresh"}}},
        {"grow": {"adapter": "a", "tasks": {"uterus": "fresh"}}, "adapter": None, "model": "unet"},
        {"base": None},
    ],
)
def test_configurations_that_contradict_themselves(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"nothing is added|takes its adapter|base is missing"):
        TrainConfig.model_validate({"name": "x", "budget": {"steps": 1}, **values})
    assert GrowConfig(adapter="a", modalities={T1: "fresh"}).train == "tokens"


# The command ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of two structures, a base, an adapter trained on the first, and how to add the second."""
    root = tmp_path_factory.mktemp("grow")
    small_folder(root / "source", 5)
    labels = ["--modality", MR, "--label", "1=prostate", "--label", "2=bladder"]
    assert call("prepare", root / "source", "--out", root / "data", "--name", "both", *labels).code == 0
    base = write_base(root / "base.safetensors")
    first = CONFIG | {"validations": 0, "base": str(base), "data": {"structures": ["prostate"]}}
    (root / "first.yaml").write_text(yaml.safe_dump(first), encoding="utf-8")
    growth = {"adapter": str(root / "first"), "tasks": {"bladder": "prostate"}}
    second = first | {"adapter": None, "base": None, "grow": growth, "data": {"structures": ["bladder"]}}
    (root / "grow.yaml").write_text(yaml.safe_dump(second), encoding="utf-8")
    trained = train_run(root, "first.yaml", root / "first")
    assert trained.code == 0, trained
    return root


def train_run(chain: Path, config: str, out: Path, *more: str) -> Outcome:
    return call("train", chain / config, "--data", chain / "data", "--out", out, "--device", "cpu", *more)


def grow_run(chain: Path, out: Path, *more: str) -> Outcome:
    return train_run(chain, "grow.yaml", out, *more)


def test_train_grows_an_adapter_from_file_to_file(chain: Path, tmp_path: Path) -> None:
    outcome = grow_run(chain, tmp_path / "second")
    assert outcome.code == 0, outcome
    assert " 64 trained parameters" in outcome.out  # the new token and the null token, 32 numbers each
    first, second = load_model(str(chain / "first")), load_model(str(tmp_path / "second"))
    assert isinstance(first.model, AdaptedSegVol)
    assert isinstance(second.model, AdaptedSegVol)
    assert second.model.tasks == ["prostate", "bladder"]
    assert torch.equal(answers(second.model, ["prostate"]), answers(first.model, ["prostate"]))
    assert first.seen <= second.seen
    summary = json.loads((tmp_path / "second" / "history.json").read_text(encoding="utf-8"))["summary"]
    assert summary["structures"] == ["prostate", "bladder"]
    assert summary["grown_from"]["training"]["structures"] == ["prostate"]


def test_growth_is_validated_on_images_as_it_is_trained_on(chain: Path, tmp_path: Path) -> None:
    base, _ = load_base(str(chain / "base.safetensors"))
    rule = Normalisation(rule="percentile")
    save_adapter(
        tmp_path / "old.safetensors", model_with(base, fusion="two-way"), "base", {}, About(normalisation=rule)
    )
    growth = GrowConfig(adapter=str(tmp_path / "old.safetensors"), tasks={"prostate": "liver"})
    given = TrainConfig(name="x", base=None, adapter=None, grow=growth, budget={"steps": 1})
    assert given.data.normalise != rule
    assert settled(given).data.normalise == rule


def test_train_grows_and_learns_all(chain: Path, tmp_path: Path) -> None:
    outcome = grow_run(chain, tmp_path / "all", "grow.train=all", "grow.tasks={bladder: fresh}")
    assert outcome.code == 0, outcome
    first, second = (load_adapter(run / "model.safetensors", load_base(str(chain / "base.safetensors"))[0])
                     for run in (chain / "first", tmp_path / "all"))  # fmt: skip
    assert not torch.equal(answers(second, ["prostate"]), answers(first, ["prostate"]))


BAD = {
    "a task the adapter has": (["grow.tasks={bladder: fresh, prostate: fresh}", "data.structures=null"], "'prostate'"),
    "a task no case has": (["grow.tasks={uterus: fresh}"], "no training case holds 'uterus'"),
    "a relative without a token": (["grow.tasks={bladder: liver}"], "no token for 'liver'"),
    "data with another modality": (["grow.tasks={}", "grow.modalities={T1 MRI: fresh}"], "no training case holds"),
    "no such adapter": (["grow.adapter=nowhere.safetensors"], "nowhere.safetensors"),
    "another base": (["base=fresh:small"], "was trained on a base with hash"),
}


@pytest.mark.parametrize("case", BAD)
def test_growth_that_cannot_be_is_told_in_one_sentence(chain: Path, tmp_path: Path, case: str) -> None:
    more, words = BAD[case]
    outcome = grow_run(chain, tmp_path / "bad", *more)
    assert outcome.code == 2, outcome
    assert words in outcome.err.splitlines()[-1]
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "bad").exists()


def test_training_an_adapter_without_tokens_to_grow_is_refused(chain: Path, tmp_path: Path) -> None:
    """And is not told which tokens to add."""
    base, _ = load_base(str(chain / "base.safetensors"))
    lora = AdaptedSegVol(base, AdapterConfig(layers=[LayerAdapterConfig()], priors=None), ["prostate"], [MR])
    save_adapter(tmp_path / "lora.safetensors", lora, str(chain / "base.safetensors"), {})
    outcome = grow_run(
        chain, tmp_path / "bad", f"grow.adapter={tmp_path / 'lora.safetensors'}", "grow.modalities={T1 MRI: fresh}"
    )
    assert outcome.code == 2
    assert "neither context priors nor prompt tokens" in outcome.err.splitlines()[-1]
