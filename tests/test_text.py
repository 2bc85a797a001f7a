"""The text path: a frozen tower that runs once a name, and the alignment that learns."""

from __future__ import annotations

import copy
import socket
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adaptmedseg.data.registry import default_registry, structure
from adaptmedseg.modules.text import ClipTextEncoder, HashedTextEncoder

NAMES = ["liver", "left kidney"]


@pytest.fixture(scope="module")
def built() -> ClipTextEncoder:
    torch.manual_seed(0)
    return ClipTextEncoder(width=16, mlp_dim=32, num_layers=1, num_heads=2, embed_dim=8)


@pytest.fixture
def encoder(built: ClipTextEncoder) -> ClipTextEncoder:
    return copy.deepcopy(built)


def tower(encoder: ClipTextEncoder) -> nn.Module:
    return encoder.clip_text_model["text_model"]


def runs(encoder: ClipTextEncoder) -> list[int]:
    """Counts the tower's runs from now on: one entry a run, how many names it took."""
    taken: list[int] = []
    tower(encoder).register_forward_hook(lambda module, inputs, output: taken.append(len(output)))
    return taken


def fresh(encoder: ClipTextEncoder, names: list[str]) -> Tensor:
    """The answer of an encoder of the same weights that has nothing in store."""
    other = ClipTextEncoder(16, 32, 1, 2, 8)
    other.load_state_dict(encoder.state_dict())
    return other(names)


def test_the_tower_is_frozen_and_the_alignment_learns(encoder: ClipTextEncoder) -> None:
    encoder.train()
    assert encoder.training
    assert not any(module.training for module in tower(encoder).modules())
    assert not any(parameter.requires_grad for parameter in tower(encoder).parameters())
    for _ in range(2):  # the second time from the store
        encoder.zero_grad()
        encoder(NAMES).square().sum().backward()
        for parameter in encoder.dim_align.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in tower(encoder).parameters())


def test_the_tower_runs_once_a_name(encoder: ClipTextEncoder) -> None:
    taken = runs(encoder)
    first = encoder(NAMES)
    assert torch.equal(encoder(NAMES), first)
    assert torch.equal(encoder([NAMES[1], NAMES[0], NAMES[1]]), first[[1, 0, 1]])
    assert taken == [2]
    encoder(["spleen", *NAMES])
    assert taken == [2, 1]


def test_the_store_follows_the_alignment(encoder: ClipTextEncoder) -> None:
    before = encoder(NAMES)
    with torch.no_grad():
        encoder.dim_align.bias.add_(1.0)
    torch.testing.assert_close(encoder(NAMES), before + 1.0)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("part", ["whole", "tower", "layer", "assigned", "parent"])
def test_new_weights_give_new_results(encoder: ClipTextEncoder, part: str, inference: bool) -> None:
    with torch.inference_mode(inference):
        before = encoder(NAMES)
    torch.manual_seed(1)
    other = ClipTextEncoder(16, 32, 1, 2, 8)
    other.dim_align.load_state_dict(encoder.dim_align.state_dict())
    if part == "whole":
        encoder.load_state_dict(other.state_dict())
    elif part == "tower":
        encoder.clip_text_model.load_state_dict(other.clip_text_model.state_dict())
    elif part == "layer":
        tower(encoder).final_layer_norm.load_state_dict({"weight": torch.rand(16), "bias": torch.rand(16)})
    elif part == "assigned":
        encoder.load_state_dict(other.state_dict(), assign=True)
    else:
        nn.ModuleDict({"text": encoder}).load_state_dict(nn.ModuleDict({"text": other}).state_dict())
    after = encoder(NAMES)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, fresh(encoder, NAMES))


def test_another_type_empties_the_store(encoder: ClipTextEncoder) -> None:
    exact = encoder(NAMES)
    taken = runs(encoder)
    half = nn.ModuleDict({"text": encoder}).to(torch.bfloat16)["text"](NAMES)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.1, rtol=0.1)
    back = encoder.float()(NAMES)
    assert taken == [2, 2]
    torch.testing.assert_close(back, fresh(encoder, NAMES))


def test_what_inference_stored_serves_training(encoder: ClipTextEncoder) -> None:
    with torch.inference_mode():
        encoder(NAMES)
    encoder(NAMES).sum().backward()
    assert encoder.dim_align.weight.grad is not None


def test_what_autocast_stored_is_exact(encoder: ClipTextEncoder) -> None:
    expected = fresh(encoder, NAMES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(NAMES)
    torch.testing.assert_close(rough.float(), expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(encoder(NAMES), expected)


def test_no_network_is_needed() -> None:
    with mock.patch.object(socket, "socket", side_effect=AssertionError("network")):
        encoder = ClipTextEncoder(width=16, mlp_dim=32, num_layers=1, num_heads=2, embed_dim=8)
        assert encoder(NAMES).shape == (2, 8)


SYNONYMS = [(synonym, entry.name) for entry in default_registry().structures for synonym in entry.synonyms]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SYNONYMS))
def test_synonyms_ask_for_the_canonical_name(pair: tuple[str, str]) -> None:
    synonym, name = pair
    names = [structure(written).name for written in (synonym, synonym.upper().replace(" ", "_"), name)]
    assert set(names) == {name}
    vectors = HashedTextEncoder(8, 4)(names)
    assert torch.equal(vectors[0], vectors[2])


def test_spellings_ask_for_the_same() -> None:
    for written in ("kidney_left", "Left-Kidney", "left kidney"):
        assert structure(written).name == "left kidney"
    assert structure("hepatic vessel").name == "hepatic vessels"
    assert structure("IVC").name == "inferior vena cava"
