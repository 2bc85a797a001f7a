"""`adaptmedseg adapters`: list, show, merge, compare."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_cases import MR, adapted, answer, one_kind, perturb
from small_cases import Outcome, call

from adaptmedseg.adapters.card import About
from adaptmedseg.adapters.file import load_adapter, save_adapter
from adaptmedseg.checkpoints.store import load_base, save_base
from adaptmedseg.data.normalise import Normalisation
from adaptmedseg.models.adapter_config import AdapterConfig, PriorsConfig
from adaptmedseg.models.segvol import SegVol


@pytest.fixture
def folder(tmp_path: Path, tiny_base: SegVol) -> Path:
    """A base, two LoRA adapters on it, one of them without gate, and one with context priors."""
    base = tmp_path / "base.safetensors"
    save_base(base, tiny_base, {"name": "tiny", "training": {"structures": ["liver"], "image_sha256": ["a"]}})
    configs = {
        "gated": one_kind("rslora"),
        "open": one_kind("rslora", train=["mask_decoder.iou_token.weight"], gate=False),
        "priors": AdapterConfig(priors=PriorsConfig(blocks=1, modality_tokens=2)),
    }
    for number, (name, config) in enumerate(configs.items()):
        model = perturb(adapted(load_base(str(base))[0], config, name=name), seed=number)
        training = {"config": name, "steps": 3, "structures": ["prostate"], "image_sha256": ["b"]}
        about = About(name, "mine", (3.0, 1.0, 1.0), Normalisation(rule="percentile"))
        save_adapter(tmp_path / "runs" / name / "model.safetensors", model, str(base), training, about)
    return tmp_path


def succeed(*arguments: str | Path) -> str:
    outcome = call("adapters", *arguments)
    assert outcome.code == 0, outcome
    return outcome.out


def refuse(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1
    for part in parts:
        assert part in outcome.err


def test_list_shows_every_adapter_and_its_base(folder: Path) -> None:
    lines = succeed("list", folder).splitlines()
    assert len(lines) == 4
    assert all(line.count("T2 MRI") == 1 for line in lines[1:])
    assert " ok " in lines[1]
    assert "runs/open/model.safetensors" in lines[2]
    assert "rslora, train" in lines[2]
    torch.manual_seed(9)
    save_base(folder / "base.safetensors", SegVol(load_base(str(folder / "base.safetensors"))[0].config), {})
    assert succeed("list", folder).count("has other weights") == 3
    (folder / "base.safetensors").unlink()
    assert succeed("list", folder).count("not here") == 3


def test_list_goes_on_where_a_file_is_damaged(folder: Path) -> None:
    damaged = folder / "runs" / "gated" / "model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-50] ^= 1
    damaged.write_bytes(data)
    outcome = call("adapters", "list", folder)
    assert outcome.code == 1
    assert len(outcome.out.splitlines()) == 4
    assert f"wrong: {damaged}: its card or tensors were changed" in outcome.out
    refuse(call("adapters", "list", folder / "nowhere"), "is no folder")
    (folder / "empty").mkdir()
    refuse(call("adapters", "list", folder / "empty"), "holds no adapter file")


def test_list_tells_of_files_that_were_cut_off(folder: Path) -> None:
    whole = folder / "runs" / "gated" / "model.safetensors"
    whole.write_bytes(whole.read_bytes()[:-50])
    empty = folder / "runs" / "empty.safetensors"
    empty.touch()
    outcome = call("adapters", "list", folder)
    assert outcome.code == 1
    assert f"wrong: {whole}: not a readable safetensors file" in outcome.out
    assert f"wrong: {empty}: not a readable safetensors file" in outcome.out


def test_show_tells_the_card_and_checks_the_file(folder: Path) -> None:
    out = succeed("show", folder / "runs" / "gated")
    for part in (
        "tasks: prostate, liver",
        "gate: T2 MRI alone",
        "input: 8×32×32, smooth",
        '"rule":"percentile"',
        "median spacing (d, h, w): 3 mm × 1 mm × 1 mm",
        "licence: mine",
        "training: config gated, steps 3",
        "trained parameters:",
        "ok: card and",
        "give the stored output",
    ):
        assert part in out
    assert "gate: none" in succeed("show", folder / "runs" / "open")
    refuse(call("adapters", "show", folder / "base.safetensors"), "no adapter", "weights inspect")
    refuse(call("adapters", "show", folder / "absent"), "no such model file")
    moved = (folder / "base.safetensors").rename(folder / "moved.safetensors")
    assert "not checked: shapes" in succeed("show", folder / "runs" / "gated")
    assert "give the stored output" in succeed("show", folder / "runs" / "gated", "--base", moved)
    torch.manual_seed(9)
    save_base(moved, SegVol(load_base(str(moved))[0].config), {})
    outcome = call("adapters", "show", folder / "runs" / "gated", "--base", moved)
    assert outcome.code == 1
    assert "wrong: " in outcome.out


def test_merge_writes_a_base_that_computes_the_same(folder: Path, tiny_base: SegVol) -> None:
    out = folder / "merged.safetensors"
    assert str(out) in succeed("merge", folder / "runs" / "open", "--out", out)
    model = load_adapter(folder / "runs" / "open" / "model.safetensors", load_base(str(folder / "base.safetensors"))[0])
    merged, card = load_base(str(out))
    torch.testing.assert_close(
        answer(merged.eval(), tiny_base), answer(model.eval(), tiny_base, MR), atol=1e-5, rtol=1e-5
    )
    assert (card["licence"], card["merged_from"]["adapter"]) == ("mine", "open")  # type: ignore[index]
    assert card["started_from"]["name"] == "tiny"  # type: ignore[index]
    assert card["training"]["normalisation"]["rule"] == "percentile"  # type: ignore[index]
    assert "note" not in card
    refuse(call("adapters", "merge", folder / "runs" / "open", "--out", out), "exists already")


def test_merge_says_why_it_would_not_compute_the_same(folder: Path) -> None:
    out = folder / "merged.safetensors"
    refuse(call("adapters", "merge", folder / "runs" / "priors", "--out", out), "has priors", "as it is")
    refuse(call("adapters", "merge", folder / "runs" / "gated", "--out", out), "its gate lets T2 MRI in", "--drop-gate")
    bottlenecks = perturb(adapted(load_base(str(folder / "base.safetensors"))[0], one_kind("med_sa", gate=False)))
    save_adapter(folder / "sa.safetensors", bottlenecks, str(folder / "base.safetensors"), {})
    refuse(call("adapters", "merge", folder / "sa.safetensors", "--out", out), "not linear")
    assert not out.exists()
    printed = succeed("merge", folder / "runs" / "gated", "--out", out, "--drop-gate")
    assert "note: the adapter's gate was dropped" in printed
    assert "gate was dropped" in str(load_base(str(out))[1]["note"])


def test_compare_tells_what_differs(folder: Path) -> None:
    gated, other = folder / "runs" / "gated", folder / "runs" / "open"
    out = succeed("compare", gated, other, gated)
    assert "config.gate_by_modality" in out
    assert "config.train" in out
    last = out.split("→")[-1]
    assert "config" not in last
    for part in ("layers image_encoder", "layers mask_decoder"):
        (line,) = [line for line in last.splitlines() if line.startswith(part)]
        assert line.split()[-2:] == ["1.000", "1.000"]
    refuse(call("adapters", "compare", gated), "is one adapter alone")
    refuse(call("adapters", "compare", gated, folder / "base.safetensors"), "no adapter")
