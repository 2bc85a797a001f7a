"""Understanding tokens: their map, what wrong ones cost, and doubts about a stated modality."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from small_cases import MODALITY, call, save, small_folder, small_image
from test_cli import write_base
from test_growing import model_with
from test_priors import with_priors

from adaptmedseg.adapters.card import About
from adaptmedseg.adapters.file import load_adapter, save_adapter
from adaptmedseg.bench import inference as bench_inference
from adaptmedseg.bench.priors import measure_passes
from adaptmedseg.checkpoints.store import load_base
from adaptmedseg.data.normalise import SEGVOL, Normalisation
from adaptmedseg.data.prepared import PreparedCase
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.probe import NO_TASK, OTHER_TASK, RIGHT, ProbeScore, summarise, swaps, with_swapped_tokens
from adaptmedseg.evaluation.token_space import anatomy, learnt_tokens, map_tokens, principal_components
from adaptmedseg.inference.modality_check import modality_doubt
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, PriorsConfig
from adaptmedseg.models.prompts import text_prompts
from adaptmedseg.models.segvol import SegVol

T1 = "T1 MRI"
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set, a base, an adapter for two modalities whose head is sure of T1, and a plain adapter."""
    root = tmp_path_factory.mktemp("tokens")
    small_folder(root / "source", 5)
    labels = ["--label", "1=prostate", "--label", "2=bladder"]
    assert call("prepare", root / "source", "--out", root / "prepared", "--modality", MODALITY, *labels).code == 0
    base = write_base(root / "base.safetensors")
    torch.manual_seed(0)
    priors = PriorsConfig(blocks=1, modality_tokens=2)
    config = AdapterConfig(layers=[], priors=priors)
    model = AdaptedSegVol(SegVol(TINY), config, ["prostate", "bladder"], [MODALITY, T1])
    assert model.priors is not None
    assert model.priors.modality_head is not None
    model.priors.modality_head.start_learning([0, 1])
    with torch.no_grad():
        model.priors.modality_head.classifier.fc2.bias[1] = 9.0
        model.priors.prototypes.classifier_pred[1].fc2.weight.normal_(std=0.5)
    save_adapter(root / "adapter.safetensors", model, str(base), {})
    plain = AdaptedSegVol(model.base, AdapterConfig(priors=None), ["prostate"], [MODALITY])
    save_adapter(root / "plain.safetensors", plain, str(base), {})
    return root


# The map of tokens ----------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 99))
def test_principal_components_keep_what_two_dimensions_can(n: int, c: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, c))
    places, shares = principal_components(vectors)
    assert places.shape == (n, 2)
    assert 0 <= shares[1] <= shares[0] + 1e-9 <= 1 + 2e-9
    centred = vectors - vectors.mean(0)
    total = float((centred**2).sum())
    np.testing.assert_allclose((places**2).sum(0), shares * total, atol=1e-8)
    if min(n - 1, c) <= 2 and total > 0:
        assert shares.sum() == pytest.approx(1)


def test_principal_components_of_points_on_a_line() -> None:
    places, shares = principal_components(np.outer([-1.0, 0, 3], [0.6, 0.8]))
    np.testing.assert_allclose(places[:, 0] - places[1, 0], [-1, 0, 3], atol=1e-12)
    np.testing.assert_allclose(shares, [1, 0], atol=1e-12)


def test_left_and_right_are_one_anatomy() -> None:
    assert [anatomy(name) for name in ("left kidney", "right kidney", "leftover")] == ["kidney", "kidney", "leftover"]


def test_heart_chambers_are_no_pair() -> None:
    assert anatomy("left ventricle") == "left ventricle"
    assert anatomy("right ventricle") == "right ventricle"


def test_every_token_is_on_the_map(tiny_base: SegVol) -> None:
    tokens = learnt_tokens(with_priors(tiny_base))
    assert [t.task or t.modality for t in tokens] == [
        "prostate", "liver", "spleen", "bladder", *["T2 MRI"] * 3, *["T1 MRI"] * 3,
    ]  # fmt: skip
    drawn = map_tokens(tokens)
    rows = list(csv.DictReader(io.StringIO(drawn.csv)))
    assert len(rows) == len(tokens)
    assert drawn.png.startswith(PNG)
    assert drawn == map_tokens(tokens)


def test_prompt_tokens_have_a_map_and_a_plain_adapter_has_none(tiny_base: SegVol) -> None:
    config = AdapterConfig(layers=[], priors=None, prompt_tokens=True)
    assert len(learnt_tokens(AdaptedSegVol(tiny_base, config, ["liver"], [MODALITY]))) == 2
    with pytest.raises(UserError, match="has no tokens"):
        learnt_tokens(model_with(tiny_base))


def test_tokens_writes_figure_and_table(files: Path, tmp_path: Path) -> None:
    run = ["adapters", "tokens", files / "adapter.safetensors", "--device", "cpu"]
    outcome = call(*run, "--out", tmp_path / "few")
    assert outcome.code == 0, outcome
    outcome = call(*run, "--data", files / "prepared", "--out", tmp_path / "all")
    assert outcome.code == 0, outcome
    counts = [
        len((tmp_path / name / "tokens.csv").read_text(encoding="utf-8").splitlines()) - 1 for name in ("few", "all")
    ]
    assert counts == [2 + 4, 2 + 4 + 2]  # one test case with two structures
    assert (tmp_path / "all" / "tokens.png").read_bytes().startswith(PNG)


# What tokens are worth ------------------------------------------------------------------


def test_every_way_to_be_wrong(tiny_base: SegVol) -> None:
    model = with_priors(tiny_base)
    ways = swaps(model, "T2 MRI")
    assert list(ways) == [RIGHT, "tokens of T1 MRI", OTHER_TASK, NO_TASK]
    assert ways[OTHER_TASK] == {"prostate": "liver", "liver": "spleen", "spleen": "bladder", "bladder": "prostate"}


def test_swapped_tokens_are_those_of_the_other(tiny_base: SegVol) -> None:
    model = with_priors(tiny_base)
    assert model.priors is not None
    with torch.no_grad():
        for parameter in model.priors.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    image = torch.rand(1, 1, *TINY.spatial_size)
    with torch.inference_mode():
        embedding = model.embed(image, ["T2 MRI"])
        liver, as_t1 = (model.segment(embedding, text_prompts([["liver"]], [m])) for m in ("T2 MRI", "T1 MRI"))
        swapped = with_swapped_tokens(model, {"T2 MRI": "T1 MRI"})
        assert torch.equal(swapped.segment(embedding, text_prompts([["liver"]], ["T2 MRI"])), as_t1)
        assert torch.equal(model.segment(embedding, text_prompts([["liver"]], ["T2 MRI"])), liver)
        other = with_swapped_tokens(model, {"liver": "spleen"})
        found = other.segment(embedding, text_prompts([["liver"]], ["T2 MRI"]))
    assert (found - liver).abs().max() > 1e-3


def score(tokens: str, case: str, dice: float) -> ProbeScore:
    return ProbeScore("set", case, case, "T2 MRI", "liver", tokens, dice)


def test_the_summary_by_hand() -> None:
    scores = [score(RIGHT, "a", 0.8), score(RIGHT, "b", 0.6), score(NO_TASK, "a", 0.5), score(NO_TASK, "b", 0.5)]
    right, without = summarise([*scores, replace(scores[2], case="c")])  # c has no score with the right tokens
    assert (right.n, right.change, right.interval) == (2, 0.0, None)
    assert right.dice == pytest.approx(0.7)
    assert (without.n, without.interval) == (2, None)
    assert without.change == pytest.approx(-0.2)
    many = [score(t, str(i), 0.8 - d) for t, d in ((RIGHT, 0.0), (NO_TASK, 0.1)) for i in range(4)]
    interval = summarise(many)[1].interval
    assert interval == pytest.approx((-0.1, -0.1))


def test_probe_prints_every_way_and_keeps_the_scores(files: Path, tmp_path: Path) -> None:
    run = ["adapters", "probe", files / "adapter.safetensors", "--data", files / "prepared", "--device", "cpu"]
    outcome = call(*run, "--out", tmp_path)
    assert outcome.code == 0, outcome
    assert [tokens for tokens in (RIGHT, f"tokens of {T1}", OTHER_TASK, NO_TASK) if tokens not in outcome.out] == []
    rows = list(csv.DictReader((tmp_path / "probe.csv").open()))
    assert len(rows) == 2 * 4
    assert {row["structure"] for row in rows} == {"prostate", "bladder"}


@pytest.mark.parametrize("command", ["tokens", "probe"])
def test_images_are_normalised_as_the_adapter_was_taught(
    files: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _ = load_base(str(files / "base.safetensors"))
    model = load_adapter(files / "adapter.safetensors", base)
    rule = Normalisation(rule="zscore")
    save_adapter(tmp_path / "zscore.safetensors", model, str(files / "base.safetensors"), {}, About(normalisation=rule))
    seen, image = [], PreparedCase.image
    monkeypatch.setattr(PreparedCase, "image", lambda case, given=SEGVOL: (seen.append(given), image(case, given))[1])
    run = ["adapters", command, tmp_path / "zscore.safetensors", "--data", files / "prepared", "--device", "cpu"]
    assert call(*run, "--out", tmp_path / "out").code == 0
    assert seen == [rule]


@pytest.mark.parametrize(
    ("command", "file", "words"),
    [
        ("tokens", "plain", "has no tokens"),
        ("probe", "plain", "no tokens to probe"),
        ("tokens", "base", "is no adapter"),
        ("probe", "base", "no tokens to probe"),
        ("probe", "nowhere", "nowhere"),
    ],
)
def test_files_without_tokens_are_told(files: Path, tmp_path: Path, command: str, file: str, words: str) -> None:
    data = ["--data", files / "prepared"] if command == "probe" else []
    outcome = call("adapters", command, files / f"{file}.safetensors", *data, "--out", tmp_path / "out")
    assert outcome.code == 2, outcome
    assert words in outcome.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


# Doubts about the modality --------------------------------------------------------------


def test_predict_doubts_a_modality_that_the_head_disagrees_with(files: Path, tmp_path: Path) -> None:
    image = save(tmp_path / "scan.nii.gz", small_image(0))
    for stated in (MODALITY, T1, "CT"):
        outcome = call("predict", image, "--out", tmp_path / stated, "--modality", stated, "--structures", "prostate",
                       "--model", files / "adapter.safetensors", "--device", "cpu")  # fmt: skip
        assert outcome.code == 0, outcome
        remarks = json.loads((tmp_path / stated / "scan.json").read_text(encoding="utf-8"))["remarks"]
        doubts = [remark for remark in remarks if "looks like" in remark]
        assert len(doubts) == (stated == MODALITY), (stated, remarks)
        assert ("looks like T1 MRI" in outcome.err) == (stated == MODALITY)


def test_no_doubt_without_a_head_that_learnt(tiny_base: SegVol) -> None:
    model, embedding = with_priors(tiny_base), torch.randn(1, 32, 2, 4, 4)
    assert modality_doubt(model, "T2 MRI", embedding) == ""
    assert modality_doubt(tiny_base, "T2 MRI", embedding) == ""


# One pass -------------------------------------------------------------------------------


def test_one_pass_answers_as_several_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_inference.SIZES, "tiny", TINY)
    result = measure_passes("tiny", 3, "cpu", bf16=False, repeats=1)
    assert result.difference < 1e-4
    assert result.ratio == result.passes / result.one_pass > 0


def test_bench_priors_prints_the_ratio() -> None:
    outcome = call("bench", "priors", "--size", "huge")
    assert (outcome.code, "--size huge" in outcome.err) == (2, True)
