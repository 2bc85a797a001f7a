"""From a normalised crop to logits on the same voxels: what evaluation, validation and prediction share."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptmedseg.data.views import ResizeMode, resize_image
from adaptmedseg.device import wait_for
from adaptmedseg.inference.precision import inference_precision
from adaptmedseg.inference.settings import InferenceSettings
from adaptmedseg.inference.zoom import (
    Region,
    Size3,
    Window,
    WindowLattice,
    overlap,
    plan_zoom,
    prompt_in_window,
    window_counts,
)
from adaptmedseg.models.prompts import Prompts, StructurePrompt, batch_prompts

Progress = Callable[[int, int], None]
DEFAULTS = InferenceSettings()
NOWHERE = Region((0, 0, 0), (0, 0, 0))


class PromptableModel(Protocol):
    """What inference needs of a model: an embedding that depends on the image alone, and masks from prompts."""

    def embed(self, image: Tensor, modalities: list[str]) -> Tensor: ...

    def segment(self, embedding: Tensor, prompts: Prompts) -> Tensor: ...


@dataclass(frozen=True)
class StructureResult:
    """The answer for one structure: logits (d, h, w), float32, on the crop's voxels; foreground is logits > 0.

    `windows`: how many windows at full resolution it was asked in; 0 means the zoom-out view alone, and, where zooming
    in was asked for, that the view showed nothing to zoom in on. `found`: whether there is any foreground.
    """

    structure: str
    logits: np.ndarray
    windows: int
    found: bool


class EmbeddingCache:
    """Embeddings of windows, the most recently asked ones, up to a number of bytes (one is always kept)."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Window, Tensor] = OrderedDict()
        self._bytes = 0

    def get(self, window: Window) -> Tensor | None:
        if window in self._kept:
            self._kept.move_to_end(window)
        return self._kept.get(window)

    def put(self, window: Window, embedding: Tensor) -> None:
        self._kept[window] = embedding
        self._bytes += embedding.nbytes
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


class CropSegmenter:
    """One normalised crop (d, h, w), encoded once, asked as often as one likes.

    The zoom-out view is encoded by `set_crop`, windows at full resolution when they are first needed; every structure
    and prompt shares them. Prompts are in voxels of the crop. Model and prompts work on `device`; the logits of the
    whole crop are held for one structure at a time.
    """

    def __init__(
        self,
        model: PromptableModel,
        size: Size3,
        resize: ResizeMode,
        device: torch.device,
        settings: InferenceSettings = DEFAULTS,
        lattice: WindowLattice = "volume",
    ):
        self.model, self.size, self.resize, self.device = model, size, resize, device
        self.settings, self.lattice = settings, lattice
        self.timings: dict[str, float] = {}
        self._view: Tensor | None = None
        self._crop = torch.empty(0)
        self._modality = ""
        self._windows = EmbeddingCache(settings.cache_bytes)

    def set_crop(self, crop: np.ndarray, modality: str) -> None:
        """Encode the zoom-out view of a crop (d, h, w) in [0, 1]."""
        self.timings = {"encode": 0.0, "decode": 0.0}
        self._windows = EmbeddingCache(self.settings.cache_bytes)
        self._crop, self._modality = torch.from_numpy(crop), modality
        view = resize_image(self._crop[None, None].to(self.device), self.size, self.resize)
        self._view = self._embed(view)

    @property
    def crop(self) -> np.ndarray:
        """The normalised crop (d, h, w) that was set."""
        return self._crop.numpy()

    @property
    def modality(self) -> str:
        """The crop's modality."""
        return self._modality

    @property
    def view_embedding(self) -> Tensor:
        """The zoom-out view's embedding (1, ...), float32."""
        if self._view is None:
            raise RuntimeError("set_crop comes first")
        return self._view.float()

    def to_view(self, coords: Tensor) -> Tensor:
        """Voxel coordinates (..., 3) of the crop to those of the zoom-out view; voxel centres at integers."""
        scale = torch.tensor([n / m for n, m in zip(self.size, self._crop.shape, strict=True)])
        return (coords + 0.5) * scale - 0.5

    def segment(
        self, prompts: Sequence[StructurePrompt], zoom: bool = False, progress: Progress | None = None
    ) -> Iterator[StructureResult]:
        """One structure's logits after another, in the order asked; with `zoom` after a second look by windows.

        `progress` hears of (windows done, all windows) of the structures that are zoomed in on together.
        """
        if self._view is None:
            raise RuntimeError("set_crop comes first")
        maps = self._zoom_out(self._view, [self._prompt_in_view(p) for p in prompts])
        at_once = max(1, self.settings.stitch_bytes // (8 * self._crop.numel())) if zoom else 1
        for start in range(0, len(prompts), at_once):
            group = slice(start, start + at_once)
            looks = [
                self._look(prompt, self._on_crop(logits), zoom)
                for prompt, logits in zip(prompts[group], maps[group], strict=True)
            ]
            self._zoom_in([look for look in looks if look.windows], progress)
            for look in looks:
                yield look.result()

    def masks_by_name(self, structures: Sequence[str]) -> dict[str, np.ndarray]:
        """Boolean masks (d, h, w) of structures asked by name alone, from the zoom-out view."""
        return {r.structure: r.logits > 0 for r in self.segment([StructurePrompt(name) for name in structures])}

    @property
    def _crop_shape(self) -> Size3:
        d, h, w = self._crop.shape
        return d, h, w

    def _prompt_in_view(self, prompt: StructurePrompt) -> StructurePrompt:
        points = None if prompt.points is None else self.to_view(prompt.points)
        box = None if prompt.box is None else self.to_view(prompt.box)
        return StructurePrompt(prompt.structure, prompt.text, points, prompt.labels, box)

    def _embed(self, views: Tensor) -> Tensor:
        """Embeddings (b, ...) of views (b, 1, d, h, w) of the crop's modality."""
        started = time.perf_counter()
        with inference_precision(self.device, self.settings.bf16):
            embedding = self.model.embed(views.to(self.device), [self._modality] * len(views))
        wait_for(self.device)
        self.timings["encode"] += time.perf_counter() - started
        return embedding

    def _decode(self, embedding: Tensor, prompts: Sequence[StructurePrompt], image_index: Sequence[int]) -> Tensor:
        """Logits (n, *map), float32, of prompts of one kind over embeddings (b, ...)."""
        started = time.perf_counter()
        asked = batch_prompts(prompts, image_index, [self._modality] * len(embedding)).to(self.device)
        with inference_precision(self.device, self.settings.bf16):
            logits = self.model.segment(embedding.float(), asked).float()
        wait_for(self.device)
        self.timings["decode"] += time.perf_counter() - started
        return logits

    def _zoom_out(self, view: Tensor, prompts: Sequence[StructurePrompt]) -> list[Tensor]:
        """Logits on the decoder's map, one a prompt; prompts of one kind are asked together."""
        maps: dict[int, Tensor] = {}
        for rows in _by_kind(prompts).values():
            logits = self._decode(view, [prompts[i] for i in rows], [0] * len(rows))
            maps |= dict(zip(rows, logits, strict=True))
        return [maps[i] for i in range(len(prompts))]

    def _on_crop(self, logits_map: Tensor) -> Tensor:
        """Logits of the view on the crop's voxels.

        Smoothly for models whose views are; else as SegVol does it: to the view's size, then to the nearest voxel.
        """
        logits = logits_map[None, None]
        if self.resize == "smooth":
            return _trilinear(self._for_stitching(logits), self._crop_shape)[0, 0]
        view = self._for_stitching(_trilinear(logits, self.size))
        return F.interpolate(view, size=self._crop_shape, mode="nearest")[0, 0]

    def _for_stitching(self, logits: Tensor) -> Tensor:
        return logits.cpu() if self.settings.stitch_on_cpu else logits

    def _look(self, prompt: StructurePrompt, logits: Tensor, zoom: bool) -> "_Look":
        """A coarse look, and the windows to look again where `zoom` is asked and something was found."""
        foreground = logits > 0
        plan = plan_zoom(foreground, self.size, self.lattice) if zoom else None
        if plan is None:
            return _Look(prompt, logits)
        questions = {
            window: prompt_in_window(prompt, window, self.size, foreground, fits=plan.fits) for window in plan.windows
        }
        return _Look(prompt, logits, plan.region, questions)

    def _zoom_in(self, looks: Sequence["_Look"], progress: Progress | None) -> None:
        """Ask every window about all structures that reach into it, and replace their coarse logits there."""
        asking: dict[Window, list[_Look]] = {}
        for look in looks:
            look.keep_coarse_where_nothing_is_asked(self.size)
            for window, question in look.windows.items():
                if question is not None:
                    asking.setdefault(window, []).append(look)
        windows = sorted(asking, key=lambda window: window.start)
        for done in range(0, len(windows), self.settings.window_batch):
            chosen = windows[done : done + self.settings.window_batch]
            rows = [(i, window, look) for i, window in enumerate(chosen) for look in asking[window]]
            questions = [cast(StructurePrompt, look.windows[window]) for _, window, look in rows]
            embeddings = self._window_embeddings(chosen)
            for part in _by_kind(questions).values():
                answers = self._decode(embeddings, [questions[r] for r in part], [rows[r][0] for r in part])
                for r, answer in zip(part, answers, strict=True):
                    _, window, look = rows[r]
                    look.add(window, self._for_stitching(_trilinear(answer[None, None], self.size))[0, 0])
            if progress is not None:
                progress(min(done + len(chosen), len(windows)), len(windows))
        for look in looks:
            look.finish(self.size)

    def _window_embeddings(self, windows: Sequence[Window]) -> Tensor:
        """Embeddings (b, ...) of windows, from the cache where they are."""
        known = {window: self._windows.get(window) for window in windows}
        new = [window for window, embedding in known.items() if embedding is None]
        if new:
            views = torch.stack([window.cut(self._crop, self.size) for window in new])[:, None]
            for window, embedding in zip(new, self._embed(views), strict=True):
                known[window] = embedding
                self._windows.put(window, embedding)
        found = [embedding for embedding in known.values() if embedding is not None]
        return found[0][None] if len(found) == 1 else torch.stack(found)


def _trilinear(logits: Tensor, size: Size3) -> Tensor:
    """Logits (n, 1, d, h, w) to another size."""
    if (
        logits.shape[2] == size[0]
    ):  # as in SegVol, whose map is as deep as its view: the same slice by slice, and faster
        return F.interpolate(logits[:, 0], size=size[1:], mode="bilinear", align_corners=False)[:, None]
    return F.interpolate(logits, size=size, mode="trilinear", align_corners=False)


def _by_kind(prompts: Sequence[StructurePrompt]) -> dict[object, list[int]]:
    """Positions of the prompts of each kind, which one batch can hold."""
    groups: dict[object, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(prompt.kind, []).append(i)
    return groups


@dataclass
class _Look:
    """One structure at work: the coarse logits, and the sum of what windows over its region say."""

    prompt: StructurePrompt
    logits: Tensor
    region: Region = NOWHERE
    windows: dict[Window, StructurePrompt | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sum = torch.zeros_like(self.logits[self.region.slices])

    def keep_coarse_where_nothing_is_asked(self, size: Size3) -> None:
        for window, question in self.windows.items():
            if question is None:
                here, _ = overlap(window, self.region, size)
                self._sum[here] += self.logits[self.region.slices][here]

    def add(self, window: Window, logits: Tensor) -> None:
        """Add what a window says, logits (d, h, w), to the sum."""
        d, h, w = logits.shape
        here, there = overlap(window, self.region, (d, h, w))
        self._sum[here] += logits[there]

    def finish(self, size: Size3) -> None:
        """Put the mean over windows in the place of the coarse logits."""
        d, h, w = (counts.to(self._sum) for counts in window_counts(self.windows, self.region, size))
        slice_counts, inside = h[:, None] * w, self.logits[self.region.slices]
        for sums, depth, target in zip(self._sum, d, inside, strict=True):  # one pass, without a volume of counts
            torch.div(sums, depth * slice_counts, out=target)

    def result(self) -> StructureResult:
        asked = sum(question is not None for question in self.windows.values())
        found = bool((self.logits > 0).any())
        return StructureResult(self.prompt.structure, self.logits.cpu().numpy(), asked, found)
