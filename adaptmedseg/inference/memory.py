"""Memory first: what a case will need, from its header alone, and what to give up, step by step, when it does not fit.

Figures are estimates from above of what a case takes beside the program and the loaded model. Bytes per voxel of the
volume were counted on real arrays (`tests/test_memory.py` holds them against measured peaks).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from adaptmedseg.data.headers import VolumeSize
from adaptmedseg.errors import UserError
from adaptmedseg.inference.loading import LoadedModel
from adaptmedseg.inference.machine import Bytes, Free, readable
from adaptmedseg.inference.settings import InferenceSettings
from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.segvol import DECODED_AT_ONCE, SegVolConfig
from adaptmedseg.models.unet import ReferenceUNet

# Bytes per voxel of the volume.
READ = 8  # float32 as read and as canonical, beside the voxels as stored
NORMALISE = 11  # the foreground's mask, percentiles of a copy, the result
HOLD = 12  # volume, crop, mask, label map, and a comparison on the way
PROBABILITIES = 20  # the map, its copy on the scanner's grid, and what comes back from the disk
LOGITS = 4
AT_WORK = 8  # logits and the sum over windows, for each structure at work when zooming in
ON_DEVICE = 4  # the crop, from which the view is resized there
FLOAT = 4
MARGIN = 1.1


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model: its parameters, one embedding, and what encoding one view and decoding one prompt take."""

    parameters: Bytes
    embedding: Bytes
    encode: Bytes
    decode: Bytes


@dataclass(frozen=True)
class Job:
    """What is asked of one case: its size, how many structures, by windows or not, with probabilities or not."""

    volume: VolumeSize
    structures: int
    zoom: bool = False
    probabilities: bool = False


@dataclass(frozen=True)
class Need:
    """Bytes that a case needs in main memory and on the device (0 where the device is the CPU)."""

    host: Bytes
    device: Bytes


@dataclass(frozen=True)
class Step:
    """A way to run: where and how. `said` tells what was given up to get here."""

    device: torch.device
    settings: InferenceSettings
    said: str = ""


def footprint(loaded: LoadedModel) -> Footprint:
    """Of a loaded model, from its configuration."""
    model = loaded.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if isinstance(model, ReferenceUNet):
        view = math.prod(loaded.size) * FLOAT
        outputs = len(model.structures)
        return Footprint(weights, outputs * view, (32 + 3 * outputs) * view, 2 * view)
    config = (model.base if isinstance(model, AdaptedSegVol) else model).config
    return _segvol_footprint(config, weights, loaded.size)


def _segvol_footprint(config: SegVolConfig, weights: Bytes, size: tuple[int, int, int]) -> Footprint:
    tokens = math.prod(n // p for n, p in zip(size, config.patch_size, strict=True))
    width = config.embed_dim
    # A block: residual, norm, q k v and their attention, or the MLP's hidden layer and its GELU. Attention itself is
    # computed in tiles where the device can do that; the full matrix is counted, for some cannot.
    block = tokens * (8 * width + 2 * config.mlp_dim) * FLOAT
    attention = config.num_heads * tokens * tokens * FLOAT
    view = math.prod(size) * FLOAT
    cells = tokens * (8 * width // 4 + 64 * width // 8) * FLOAT  # both levels of the upscaling
    # Half as much again for the copies of the weights in bfloat16 that autocast keeps while a model runs.
    casts = weights // 2
    encode = block + attention + 3 * view + casts
    decode = cells + 10 * tokens * width * FLOAT + 2 * view
    return Footprint(weights, tokens * width * FLOAT, encode, decode)


def estimate(model: Footprint, size: tuple[int, int, int], job: Job, step: Step, loaded_on: torch.device) -> Need:
    """What a case needs beside a model that already is on `loaded_on`."""
    volume, settings = job.volume, step.settings
    voxels = volume.voxels
    at_once = _structures_at_once(job, settings)
    batch = settings.window_batch if job.zoom else 1
    windows = _windows(volume, size) if job.zoom else 0
    # The view's embedding stays; windows wait in the cache, which keeps one whatever its limit.
    cache = min(windows * model.embedding, max(settings.cache_bytes, model.embedding))
    decoded = min(job.structures * batch, DECODED_AT_ONCE)
    network = (1 + batch) * model.embedding + cache + batch * model.encode + decoded * model.decode
    if step.device.type != loaded_on.type:
        network += model.parameters
    # Structures that are done stay until the next ones are there.
    stitch = 2 * at_once * (AT_WORK if job.zoom else LOGITS) * voxels
    host = (HOLD + PROBABILITIES * job.probabilities) * voxels
    if step.device.type == "cpu":
        return Need(int(MARGIN * max(_before(volume), host + stitch + network)), 0)
    host += stitch if settings.stitch_on_cpu else LOGITS * voxels
    device = network + ON_DEVICE * voxels + (0 if settings.stitch_on_cpu else stitch + voxels)
    return Need(int(MARGIN * max(_before(volume), host)), int(MARGIN * device))


def _structures_at_once(job: Job, settings: InferenceSettings) -> int:
    """How many structures look through the windows together."""
    fitting = settings.stitch_bytes // (AT_WORK * job.volume.voxels) if job.zoom else 1
    return min(job.structures, max(1, fitting))


def _before(volume: VolumeSize) -> Bytes:
    """The peak of reading and normalising."""
    return max(volume.loaded_bytes + READ * volume.voxels, NORMALISE * volume.voxels)


def _windows(volume: VolumeSize, size: tuple[int, int, int]) -> int:
    """How many windows cover the whole volume, overlapping by half."""
    return math.prod(max(1, math.ceil(2 * n / window) - 1) for n, window in zip(volume.shape, size, strict=True))


def ladder(device: torch.device, settings: InferenceSettings) -> list[Step]:
    """From the way asked for, one thing given up after another; the answer stays the same but for rounding."""
    steps = [Step(device, settings)]

    def give_up(said: str, to: torch.device | None = None, **changes: int | bool) -> None:
        last = steps[-1]
        changed = replace(last.settings, **changes)  # type: ignore[arg-type]
        if changed != last.settings or (to is not None and to != last.device):
            steps.append(Step(to or last.device, changed, said))

    give_up("one window at a time", window_batch=1)
    give_up("one structure at a time", stitch_bytes=0)
    give_up("keeping no embeddings of windows", cache_bytes=0)
    if device.type != "cpu":
        give_up("bfloat16", bf16=True)
        give_up("putting the volume together in main memory", stitch_on_cpu=True)
        give_up("the CPU instead of the graphics processor", torch.device("cpu"))
    return steps


def choose_step(
    steps: list[Step],
    case: str,
    need: Callable[[Step], Need],
    free: Callable[[torch.device], Free],
) -> int:
    """The first step that fits into what is free.

    Raises:
        UserError: none does; names the case, what it needs and what is free.
    """
    needed, has = Need(0, 0), Free(None)
    for position, step in enumerate(steps):
        needed, has = need(step), free(step.device)
        if (has.host is None or needed.host <= has.host) and (has.device is None or needed.device <= has.device):
            return position
    raise UserError(
        f"{case}: needs about {readable(needed.host)} of main memory even with everything given up that can be, and "
        f"{readable(has.host or 0)} are free; close other programs, take a larger machine or resample the image"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of whatever kind, is full."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = str(error).lower()
    said = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(phrase in words for phrase in said)
