"""The `weights` commands, and every file that is no SegVol checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published import HEAD_OPTIONS, Table, assert_sentence, encoder_only, hub_release, project_release, read, tiny_table
from safetensors.torch import save_file
from small_cases import call, save, small_image

from adaptmedseg.adapters.file import save_adapter
from adaptmedseg.checkpoints.convert import convert
from adaptmedseg.checkpoints.known import KNOWN, KnownWeights
from adaptmedseg.checkpoints.store import BASE_FORMAT, load_base, read_tensors, save_base, write_tensors
from adaptmedseg.data.download import file_hash
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, LayerAdapterConfig
from adaptmedseg.models.segvol import SegVol


@pytest.fixture(scope="module")
def table() -> Table:
    return tiny_table()


# Files that are no such thing -----------------------------------------------------------


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch was-run",)


def damaged(share: float, zipped: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save({"model.image_encoder.x": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return write


def damaged_safetensors(path: Path) -> None:
    save_file({"model.image_encoder.x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


WRONG_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "is no checkpoint"),
    "page": (lambda path: path.write_text("<html>not found</html>", encoding="utf-8"), "is no checkpoint"),
    "zip cut early": (damaged(0.3, True), "truncated or damaged"),
    "zip cut late": (damaged(0.95, True), "truncated or damaged"),
    "pickle cut": (damaged(0.6, False), "truncated or damaged"),
    "safetensors cut": (damaged_safetensors, "truncated or damaged"),
    "code": (lambda path: torch.save({"model": {"a": Malicious()}}, path), "code out of a file is never run"),
    "old code": (
        lambda path: torch.save({"a": Malicious()}, path, _use_new_zipfile_serialization=False),
        "code out of a file is never run",
    ),
    "module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), r"Linear.*code out of a file is never run"),
    "tensor": (lambda path: torch.save(torch.zeros(3), path), "holds a Tensor instead of a table"),
    "nothing": (lambda path: torch.save({"model": {}}, path), "holds an empty table"),
    "numbers": (lambda path: torch.save({"model": {"a": 3}}, path), "'a' is no plain tensor but a int"),
    "other network": (lambda path: torch.save({"conv1.weight": torch.zeros(3)}, path), "no SegVol checkpoint"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_other_files_are_told_in_a_sentence(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = WRONG_FILES[case]
    path = tmp_path / "weights.pth"
    write(path)
    for command in ("inspect", "convert"):
        outcome = call(
            "weights", command, path, *(["--out", tmp_path / "b.safetensors"] if command == "convert" else [])
        )
        assert_sentence(outcome, str(path))
        with pytest.raises(UserError, match=message):
            read(path)
    assert not (tmp_path / "was-run").exists()


def test_files_of_this_project_are_not_converted_twice(tiny_base: SegVol, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base.safetensors", tmp_path / "adapter.safetensors"
    save_base(base, tiny_base, {"name": "tiny"})
    adapted = AdaptedSegVol(
        tiny_base, AdapterConfig(layers=[LayerAdapterConfig(rank=2, alpha=2.0)]), ["liver"], ["T2 MRI"]
    )
    save_adapter(adapter, adapted, str(base), {})
    for path in (base, adapter):
        assert_sentence(
            call("weights", "convert", path, "--out", tmp_path / "new.safetensors"), str(path), "this project already"
        )
        outcome = call("weights", "inspect", path)
        assert outcome.code == 0, outcome
        assert "adaptmedseg-" in outcome.out


# The commands ---------------------------------------------------------------------------


def test_inspect_convert_verify(table: Table, tmp_path: Path) -> None:
    path, out = project_release(table, tmp_path / "SegVol_v1.pth"), tmp_path / "base.safetensors"
    outcome = call("weights", "inspect", path, "--keys")
    assert outcome.code == 0, outcome
    for part in (
        "project release layout",
        "left out by rule 'mask_downscaling': 10 tensors",
        "module.image_encoder.norm.weight -> image_encoder.norm.weight",
        "position_ids -> left out (position_ids)",
        "spatial_size: 16×64×64",
        "`convert` needs --config num_heads=N",
    ):
        assert part in outcome.out
    assert_sentence(call("weights", "convert", path), "--out")
    assert_sentence(call("weights", "convert", path, "--out", out), "--config num_heads=N")
    outcome = call("weights", "convert", path, "--out", out, *HEAD_OPTIONS, "--licence", "MIT", "--name", "mine")
    assert outcome.code == 0, outcome
    assert "licence: MIT" in outcome.out
    assert_sentence(call("weights", "convert", path, "--out", out, *HEAD_OPTIONS), str(out), "--overwrite")
    assert call("weights", "convert", path, "--out", out, *HEAD_OPTIONS, "--overwrite").code == 0
    assert_sentence(call("weights", "convert", path, "--out", path, *HEAD_OPTIONS, "--overwrite"), "itself")
    _, card = load_base(str(out))
    assert card["licence"] == "unknown: see the publisher"
    assert card["source"]["file"] == "SegVol_v1.pth"  # type: ignore[index]
    outcome = call("weights", "verify", out, "--against", path)
    assert outcome.code == 0, outcome
    assert "hash is the one recorded" in outcome.out
    assert "equal to the bit" in outcome.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["SegVol_v1.pth", "base.safetensors"]


def test_verify_finds_what_is_wrong(table: Table, tmp_path: Path) -> None:
    path, out = hub_release(table, tmp_path / "pytorch_model.bin"), tmp_path / "base.safetensors"
    convert(read(path), out, name="tiny")
    tensors, metadata = read_tensors(out, BASE_FORMAT)
    name = "image_encoder.norm.weight"
    changed = {**tensors, name: tensors[name] + 0.25}
    write_tensors(out, changed, metadata)
    outcome = call("weights", "verify", out, "--against", path)
    assert outcome.code == 1, outcome
    assert "wrong: the weights' hash is not the recorded" in outcome.out
    assert f"wrong: not equal to pytorch_model.bin: 1 tensor, most {name}: by up to 0.25" in outcome.out
    write_tensors(out, {**tensors, name: torch.full((96,), torch.inf)}, metadata)
    assert f"not finite: 1 tensor, the first {name}" in call("weights", "verify", out).out
    write_tensors(out, {key: tensor for key, tensor in tensors.items() if key != name}, metadata)
    outcome = call("weights", "verify", out)
    assert outcome.code == 1
    assert f"does not fit the configuration: 1 tensor, the first {name}" in outcome.out
    assert_sentence(call("weights", "verify", path), str(path))
    assert_sentence(call("weights", "verify", tmp_path / "absent.safetensors"), "no such model file")


def test_verify_compares_a_base_made_of_an_encoder(table: Table, tmp_path: Path) -> None:
    path, out = encoder_only(table, tmp_path / "vit_pretrain.ckpt"), tmp_path / "base.safetensors"
    options = ["--config", "spatial_size=16,64,64", "--config", "text.kind=hashed", *HEAD_OPTIONS[:4]]
    outcome = call("weights", "convert", path, "--out", out, *options, "--spatial-size", "32,64,64", "--seed", "3")
    assert outcome.code == 0, outcome
    assert "all of prompt_encoder, mask_decoder, text_encoder: fresh weights" in outcome.out
    outcome = call("weights", "verify", out, "--against", path)
    assert outcome.code == 0, outcome
    assert "27 of 27 tensors of vit_pretrain.ckpt are equal to the bit" in outcome.out


def test_a_converted_base_predicts(table: Table, tmp_path: Path) -> None:
    out = tmp_path / "base.safetensors"
    convert(read(hub_release(table, tmp_path / "pytorch_model.bin")), out, name="tiny")
    scan = save(tmp_path / "scan.nii.gz", small_image(0))
    options = ["--modality", "CT", "--structures", "liver", "--device", "cpu"]
    outcome = call("predict", scan, "--out", tmp_path / "masks", "--model", out, *options)
    assert outcome.code == 0, outcome
    assert (tmp_path / "masks" / "scan.nii.gz").exists()


def test_the_publishers_file_is_known_by_its_checksum(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub_release(table, tmp_path / "renamed.bin")
    known = KnownWeights("tiny", "https://a.page/weights.bin", "a page", 1, file_hash(path), "CC0")
    monkeypatch.setitem(KNOWN, "tiny", known)
    card = convert(read(path), tmp_path / "base.safetensors", name="x")
    assert card["licence"] == "CC0"
    assert card["source"]["published_as"] == "tiny"  # type: ignore[index]


def test_verify_checks_an_adapter_on_its_base(tiny_base: SegVol, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base.safetensors", tmp_path / "adapter.safetensors"
    save_base(base, tiny_base, {"name": "tiny"})
    adapted = AdaptedSegVol(
        tiny_base, AdapterConfig(layers=[LayerAdapterConfig(rank=2, alpha=2.0)]), ["liver"], ["T2 MRI"]
    )
    save_adapter(adapter, adapted, str(base), {})
    outcome = call("weights", "verify", adapter)
    assert outcome.code == 0, outcome
    assert "fit its base" in outcome.out
    torch.manual_seed(9)
    save_base(base, SegVol(tiny_base.config), {"name": "another"})
    outcome = call("weights", "verify", adapter)
    assert outcome.code == 1
    assert "was trained on a base with hash" in outcome.out
    base.unlink()
    assert "not checked: shapes, for its base" in call("weights", "verify", adapter).out
    assert_sentence(call("weights", "verify", adapter, "--base", base), str(base))


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    table, path = torch.arange(12.0).reshape(3, 4), tmp_path / "tied.safetensors"
    write_tensors(path, {"a": table, "b": table, "row": table[1], "other": torch.ones(2)}, {"format": BASE_FORMAT})
    found, _ = read_tensors(path, BASE_FORMAT)
    assert torch.equal(found["a"], table)
    assert torch.equal(found["b"], table)
    assert torch.equal(found["row"], table[1])
