"""What inference costs: the plain way of asking a SegVol against ours, with the same weights, volume and windows.

The plain way encodes the view and every window anew for every structure, in float32, with attention as three plain
products: what the published script does. Every way runs in a process of its own, so that its peak memory is its own.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from adaptmedseg.bench.process import in_own_process
from adaptmedseg.bench.products import EncoderShare, encoder_share
from adaptmedseg.data.maps import write_probabilities
from adaptmedseg.data.overlap import dice
from adaptmedseg.data.volume import Grid
from adaptmedseg.device import keep_freed_memory
from adaptmedseg.inference.loading import LoadedModel
from adaptmedseg.inference.machine import PROC, AnonymousPeak, peak_rss
from adaptmedseg.inference.precision import hold_products_in_bf16
from adaptmedseg.inference.predictor import Predictor
from adaptmedseg.inference.segmenter import CropSegmenter
from adaptmedseg.inference.settings import InferenceSettings
from adaptmedseg.models.prompts import NO_UPDATE, Prompts, StructurePrompt, TaskUpdate
from adaptmedseg.models.segvol import RELEASED, SMALL, SegVol, SegVolConfig, Size3
from adaptmedseg.modules import vit

Way = Literal["plain", "shared", "ours"]
SIZES = {"released": RELEASED, "small": SMALL}
FOREGROUND = 0.2  # share of the view that the random weights are made to call foreground, in every structure
STRUCTURES = [
    "liver", "spleen", "left kidney", "right kidney", "stomach", "gallbladder", "esophagus", "pancreas", "aorta",
    "inferior vena cava", "left adrenal gland", "right adrenal gland", "duodenum", "bladder", "prostate", "rectum",
]  # fmt: skip


@dataclass(frozen=True)
class BenchSettings:
    """What is asked of each way: a crop of `shape` (d, h, w) voxels, `structures` of them, on a device."""

    size: str = "released"
    shape: Size3 = (96, 256, 256)
    structures: int = 13
    device: str = "cpu"


@dataclass(frozen=True)
class WayResult:
    """Seconds of one way for all structures and of its stages, views encoded, prompts decoded, and its peak memory.

    `anonymous_bytes`: the peak without pages of files, such as the answers that the benchmark keeps on disk to compare
    them; None on a graphics processor and where the system does not tell.
    """

    way: Way
    seconds: float
    encode: float
    decode: float
    views: int
    decodings: int
    peak_bytes: int
    anonymous_bytes: int | None = None
    second_prompt: float | None = None
    first_prompt: float | None = None
    share: EncoderShare | None = None


class Counting(SegVol):
    """A SegVol with random weights whose logits are shifted so that every structure has a foreground; it counts."""

    def __init__(self, config: SegVolConfig):
        super().__init__(config)
        self.shift: dict[str, float] = {}
        self.views = self.decodings = 0

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor:
        self.views += len(image)
        return super().embed(image, modalities)

    def segment(self, embedding: Tensor, prompts: Prompts, update: TaskUpdate = NO_UPDATE) -> Tensor:
        self.decodings += len(prompts)
        logits = super().segment(embedding, prompts, update).float()
        shift = torch.tensor([self.shift.get(name, 0.0) for name in prompts.structures], device=logits.device)
        return logits - shift[:, None, None, None]


def bench_volume(shape: Size3) -> np.ndarray:
    """Smooth shapes and noise (d, h, w) in [0, 1], the same at every call."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, *shape, generator=generator) * 0.1
    for cells in (4, 9, 17):
        coarse = torch.rand(1, 1, *[min(cells, n) for n in shape], generator=generator)
        image += nn.functional.interpolate(coarse, size=shape, mode="trilinear") / 3
    return (image / image.max())[0, 0].numpy()


def _plain_attention(self: vit.SelfAttention, tokens: Tensor) -> Tensor:
    b, n, _ = tokens.shape
    q, k, v = self.qkv(tokens).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
    return self.out_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


@contextmanager
def plain_attention():
    """The image encoder's attention as three products, as the reference computes it."""
    kept = vit.SelfAttention.forward
    vit.SelfAttention.forward = _plain_attention  # type: ignore[method-assign]
    try:
        yield
    finally:
        vit.SelfAttention.forward = kept  # type: ignore[method-assign]


def build_model(settings: BenchSettings) -> Counting:
    """Random weights by seed 0; shifted by what the plain numerics say of the view."""
    torch.manual_seed(0)
    model = Counting(SIZES[settings.size]).eval().to(settings.device)
    segmenter = _segmenter(model, settings, InferenceSettings(bf16=False))
    segmenter.set_crop(bench_volume(settings.shape), "CT")
    for name in STRUCTURES[: settings.structures]:
        (result,) = segmenter.segment([StructurePrompt(name)])
        model.shift[name] = float(np.quantile(result.logits[::3, ::3, ::3], 1 - FOREGROUND))
    model.views = model.decodings = 0
    return model


def _segmenter(model: Counting, settings: BenchSettings, how: InferenceSettings) -> CropSegmenter:
    config = SIZES[settings.size]
    return CropSegmenter(model, config.spatial_size, config.resize, torch.device(settings.device), how)


def run_plain(model: Counting, settings: BenchSettings, out: np.ndarray) -> dict[str, float]:
    """Every structure from the start: view and windows encoded for it alone."""
    stages = {"encode": 0.0, "decode": 0.0}
    volume = bench_volume(settings.shape)
    for row, name in enumerate(STRUCTURES[: settings.structures]):
        segmenter = _segmenter(model, settings, InferenceSettings(bf16=False))
        segmenter.set_crop(volume, "CT")
        (result,) = segmenter.segment([StructurePrompt(name)], zoom=True)
        out[row] = result.logits
        stages = {stage: seconds + segmenter.timings[stage] for stage, seconds in stages.items()}
    return stages


def run_shared(model: Counting, settings: BenchSettings, out: np.ndarray, how: InferenceSettings) -> CropSegmenter:
    """All structures of one image."""
    segmenter = _segmenter(model, settings, how)
    segmenter.set_crop(bench_volume(settings.shape), "CT")
    prompts = [StructurePrompt(name) for name in STRUCTURES[: settings.structures]]
    for row, result in enumerate(segmenter.segment(prompts, zoom=True)):
        out[row] = result.logits
    return segmenter


def measure(way: Way, settings: BenchSettings, folder: Path) -> WayResult:
    """Run one way in this process; its logits go to a file in `folder`."""
    keep_freed_memory()
    shape = (settings.structures, *settings.shape)
    out = np.lib.format.open_memmap(folder / f"{way}.npy", "w+", np.float32, shape)
    model = build_model(settings)
    extra: dict[str, object] = {}
    if way == "ours":
        hold_products_in_bf16(model)
        _warm_up(model, settings)
    memory = AnonymousPeak()
    with memory:
        started = time.perf_counter()
        if way == "plain":
            with plain_attention():
                stages = run_plain(model, settings, out)
        elif way == "shared":
            with plain_attention():
                stages = run_shared(model, settings, out, InferenceSettings(bf16=False)).timings
        else:
            segmenter = run_shared(model, settings, out, InferenceSettings())
            stages = dict(segmenter.timings)
        seconds = time.perf_counter() - started
    views, decodings, peak = model.views, model.decodings, peak_bytes(settings.device)
    anonymous = memory.bytes if settings.device == "cpu" else None
    if way == "ours":
        extra = _interactive(model, settings, folder)
        extra["share"] = encoder_share(model, settings.device)
    return WayResult(way, seconds, stages["encode"], stages["decode"], views, decodings, peak, anonymous, **extra)  # type: ignore[arg-type]


def _warm_up(model: Counting, settings: BenchSettings) -> None:
    segmenter = _segmenter(model, settings, InferenceSettings())
    segmenter.set_crop(bench_volume(SIZES[settings.size].spatial_size), "CT")
    list(segmenter.segment([StructurePrompt(STRUCTURES[0])]))
    model.views = model.decodings = 0


def _interactive(model: Counting, settings: BenchSettings, folder: Path) -> dict[str, object]:
    """Seconds from a file to the mask of a first prompt, and of a click more on the same structure of the image."""
    path = folder / "volume.nii"
    d, h, w = settings.shape
    write_probabilities(path, bench_volume(settings.shape), Grid((w, h, d), np.diag([1.0, 1.0, 1.0, 1.0])))
    config = SIZES[settings.size]
    loaded = LoadedModel(model, config.spatial_size, config.resize, [], frozenset(), {}, "random weights", True)
    predictor = Predictor(loaded, torch.device(settings.device))
    started = time.perf_counter()
    predictor.set_image(path, "CT")
    predictor.predict(["liver"])
    first = time.perf_counter() - started
    click = {"position": [w // 2, h // 2, d // 2], "label": "positive"}
    entry = {"structure": "liver", "points": [click]}
    prompts = predictor.parse({"version": 1, "space": "voxel", "prompts": [entry]})
    started = time.perf_counter()
    predictor.predict(prompts=prompts)
    return {"first_prompt": first, "second_prompt": time.perf_counter() - started}


def peak_bytes(device: str) -> int:
    """Peak memory of this process on its device."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else peak_rss(PROC) or 0


@dataclass(frozen=True)
class BenchResult:
    """All ways measured, and how far their answers agree: largest difference of logits, smallest Dice."""

    settings: BenchSettings
    ways: dict[Way, WayResult]
    logit_difference: dict[Way, float] = field(default_factory=dict)
    smallest_dice: dict[Way, float] = field(default_factory=dict)


def run_bench(
    settings: BenchSettings, ways: tuple[Way, ...], tell: Callable[[str], None] = lambda text: None
) -> BenchResult:
    """Measure the ways one after another and compare each with the plain one, where that is among them."""
    results: dict[Way, WayResult] = {}
    differences: dict[Way, float] = {}
    dices: dict[Way, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way in ways:
            tell(f"measuring the way '{way}'")
            results[way] = in_own_process(way, measure, way, settings, folder)
        for way in ways if "plain" in ways else ():
            plain, other = (np.load(folder / f"{w}.npy", mmap_mode="r") for w in ("plain", way))
            differences[way] = max(float(np.abs(a - b).max()) for a, b in zip(plain, other, strict=True))
            pairs = [dice(a > 0, b > 0) for a, b in zip(plain, other, strict=True)]
            dices[way] = min((value for value in pairs if value is not None), default=1.0)  # empty both: equal
    return BenchResult(settings, results, differences, dices)
