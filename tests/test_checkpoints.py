"""Model files: round trips, and every way in which a file can be wrong."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from adaptmedseg.adapters.file import ADAPTER_FORMAT, load_adapter, read_card, save_adapter
from adaptmedseg.checkpoints import store
from adaptmedseg.checkpoints.fresh import seeded
from adaptmedseg.checkpoints.store import BASE_FORMAT, load_base, save_base, weights_hash, write_tensors
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.adapter_config import AdapterConfig, LayerAdapterConfig, PriorsConfig
from adaptmedseg.models.prompts import text_prompts
from adaptmedseg.models.segvol import SegVol, SegVolConfig

TASKS, MODALITIES = ["prostate", "liver"], ["T2 MRI"]
CONFIG = AdapterConfig(layers=[LayerAdapterConfig(rank=2, alpha=2.0)], priors=PriorsConfig(blocks=1, modality_tokens=2))


def another_base(config: SegVolConfig, seed: int) -> SegVol:
    torch.manual_seed(seed)
    return SegVol(config).eval()


def trained_adapter(base: SegVol) -> AdaptedSegVol:
    torch.manual_seed(5)
    model = AdaptedSegVol(base, CONFIG, TASKS, MODALITIES).eval()
    with torch.no_grad():
        for tensor in model.trained_tensors().values():
            tensor.add_(0.2 * torch.randn(tensor.shape))
    return model


def logits(model: SegVol | AdaptedSegVol, size: tuple[int, int, int]) -> Tensor:
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        return model(image, text_prompts([TASKS], MODALITIES))


@pytest.fixture
def base_file(tmp_path: Path, tiny_base: SegVol) -> Path:
    path = tmp_path / "models" / "base.safetensors"
    save_base(path, tiny_base, {"name": "tiny", "licence": "Apache-2.0"})
    return path


@pytest.fixture
def adapter_file(tmp_path: Path, tiny_base: SegVol) -> Path:
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, trained_adapter(tiny_base), "tiny", {"steps": 3})
    return path


def test_a_base_comes_back_equal_with_its_card(base_file: Path, tiny_base: SegVol) -> None:
    model, card = load_base(str(base_file))
    assert card == {"name": "tiny", "licence": "Apache-2.0"}
    assert model.config == tiny_base.config
    assert weights_hash(model) == weights_hash(tiny_base)
    size = tiny_base.config.spatial_size
    assert torch.equal(logits(model.eval(), size), logits(tiny_base, size))
    assert list(base_file.parent.iterdir()) == [base_file]


def test_half_precision_is_close_and_half_as_large(base_file: Path, tiny_base: SegVol) -> None:
    half = base_file.with_name("half.safetensors")
    save_base(half, tiny_base, {}, torch.float16)
    model, _ = load_base(str(half))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    size = tiny_base.config.spatial_size
    torch.testing.assert_close(logits(model.eval(), size), logits(tiny_base, size), atol=5e-3, rtol=0)
    assert half.stat().st_size < 0.6 * base_file.stat().st_size


def test_fresh_weights_follow_the_seed() -> None:
    first, card = load_base("fresh:small", seed=3)
    again, _ = load_base("fresh:small", seed=3)
    other, _ = load_base("fresh:small", seed=4)
    assert weights_hash(first) == weights_hash(again) != weights_hash(other)
    assert card["seed"] == 3


def test_a_name_with_a_seed_means_the_same_weights_everywhere() -> None:
    named, card = load_base(seeded("fresh:small", 3), seed=7)
    assert weights_hash(named) == weights_hash(load_base("fresh:small", seed=3)[0])
    assert (card["name"], card["seed"]) == ("fresh:small", 3)
    assert seeded("fresh:small@3", 5) == "fresh:small@3"
    assert seeded("runs/base", 5) == "runs/base"
    with pytest.raises(UserError, match="neither a known name"):
        load_base("fresh:huge@1")
    with pytest.raises(UserError, match="its seed is too large"):
        load_base(f"fresh:small@{2**64}")


def test_the_wrong_base_is_refused(adapter_file: Path, tiny_base: SegVol) -> None:
    with pytest.raises(UserError, match="--base") as error:
        load_adapter(adapter_file, another_base(tiny_base.config, 9))
    assert str(adapter_file) in str(error.value)
    assert "'tiny'" in str(error.value)


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def header_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickled(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def of_another_kind(path: Path) -> None:
    write_tensors(path, {"weight": torch.zeros(3)}, {"format": "adaptmedseg-unet-1"})


def without_card(path: Path) -> None:
    form = ADAPTER_FORMAT if path.stem == "adapter" else BASE_FORMAT
    write_tensors(path, {"weight": torch.zeros(3)}, {"format": form})


def card_not_json(path: Path) -> None:
    form = ADAPTER_FORMAT if path.stem == "adapter" else BASE_FORMAT
    write_tensors(path, {"weight": torch.zeros(3)}, {"format": form, "card": "{", "config": "{"})


WRONG: list[tuple[Callable[[Path], None], str]] = [
    (missing, "no such model file; give"),
    (truncated, "copy or download it again"),
    (header_cut, "copy or download it again"),
    (empty, "copy or download it again"),
    (pickled, "weights convert"),
    (foreign, "written by adaptmedseg"),
    (folder, "is a folder without model.safetensors"),
    (of_another_kind, r"holds adaptmedseg-unet-1 \(a U-Net\), expected"),
    (without_card, "card is damaged; copy"),
    (card_not_json, "card is damaged; copy"),
]


@pytest.mark.parametrize(("spoil", "remedy"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_base_file_is_told_in_a_sentence(base_file: Path, spoil: Callable[[Path], None], remedy: str) -> None:
    spoil(base_file)
    with pytest.raises(UserError, match=remedy) as error:
        load_base(str(base_file))
    assert str(base_file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("spoil", "remedy"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_adapter_file_is_told_in_a_sentence(
    adapter_file: Path, tiny_base: SegVol, spoil: Callable[[Path], None], remedy: str
) -> None:
    spoil(adapter_file)
    with pytest.raises(UserError, match=remedy) as error:
        load_adapter(adapter_file, another_base(tiny_base.config, 0))
    assert str(adapter_file) in str(error.value)


def test_a_base_is_no_adapter_and_an_adapter_no_base(base_file: Path, adapter_file: Path) -> None:
    with pytest.raises(
        UserError, match=rf"holds {BASE_FORMAT} \(a base of volumes\), expected {ADAPTER_FORMAT} \(an adapter"
    ):
        read_card(base_file)
    with pytest.raises(UserError, match=rf"holds {ADAPTER_FORMAT} \(an adapter of .*\), expected {BASE_FORMAT} "):
        load_base(str(adapter_file))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"base 'smal'.*small.*fresh:small"):
        load_base("smal")


def test_tensors_that_do_not_fit_the_configuration_are_named(base_file: Path, tiny_base: SegVol) -> None:
    tensors = dict(tiny_base.state_dict())
    dropped = tensors.pop("image_encoder.norm.weight")
    metadata = {"format": BASE_FORMAT, "config": tiny_base.config.model_dump_json(), "card": json.dumps({})}
    for changed in (tensors, {**tensors, "image_encoder.norm.weight": dropped[:-1]}):
        write_tensors(base_file, changed, metadata)
        with pytest.raises(UserError, match=r"first difference: image_encoder\.norm\.weight"):
            load_base(str(base_file))


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(
    base_file: Path, tiny_base: SegVol, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = base_file.read_bytes()

    def half_written(raised: Exception, tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half a file")
        raise raised

    full = (OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device"))
    for raised, target in zip(full, (base_file, base_file.with_name("new.safetensors")), strict=True):
        monkeypatch.setattr(store, "save_file", partial(half_written, raised))
        with pytest.raises(UserError, match=r"No space left on device.*free some space") as error:
            save_base(target, tiny_base, {})
        assert str(target) in str(error.value)
    assert list(base_file.parent.iterdir()) == [base_file]
    assert base_file.read_bytes() == before


def test_a_file_in_the_place_of_the_folder_is_told(base_file: Path, tiny_base: SegVol) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        save_base(base_file / "inside.safetensors", tiny_base, {})


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(UserError, match=r"--device abacus: .*choose one of auto, .*cpu"):
        pick_device("abacus")


def test_others_may_read_a_model_file(tiny_base: SegVol, tmp_path: Path) -> None:
    save_base(tmp_path / "base.safetensors", tiny_base, {"name": "tiny"})
    assert (tmp_path / "base.safetensors").stat().st_mode & 0o444 == 0o444
