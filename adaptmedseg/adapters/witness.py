"""A tiny input with the output it had when an adapter was written: computed again at every load.

Hashes tell that a file is what was written; this tells that today's code makes of it what the code of that day made.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptmedseg.models.adapted import AdaptedSegVol
from adaptmedseg.models.prompts import text_prompts

IMAGE, LOGITS = "witness.image", "witness.logits"
LOW_RESOLUTION = (4, 8, 8)
MAX_TASKS = 4  # a prompt takes a quarter of a second in the released size
VOXELS = 32
TOLERANCE = 1e-3  # of the largest logit, 1 at least: float32 on any machine stays below a tenth of it


def make_witness(model: AdaptedSegVol) -> dict[str, Tensor]:
    """A random image (4, 8, 8), float16, and what the model's first adapter says to it, float32 (m, t, 32)."""
    image = torch.rand(LOW_RESOLUTION, generator=torch.Generator().manual_seed(0)).half()
    return {IMAGE: image, LOGITS: witness_logits(model, image)}


def deviation(model: AdaptedSegVol, witness: Mapping[str, Tensor]) -> float:
    """How far the model's logits are from the stored ones, in units of what rounding may explain; infinite where they
    cannot be compared."""
    expected = witness[LOGITS]
    found = witness_logits(model, witness[IMAGE])
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - expected).abs().max()) / (TOLERANCE * max(1.0, float(expected.abs().max())))


def witness_logits(model: AdaptedSegVol, image: Tensor) -> Tensor:
    """Logits (m, t, 32) of the first t tasks, asked by name in each of m modalities, at voxels spread over the map.

    The image (d, h, w) is enlarged to the model's input. One encoding serves all modalities.
    """
    device = next(model.base.parameters()).device
    tasks, modalities = model.tasks[:MAX_TASKS] or ["structure"], model.modalities
    view = F.interpolate(
        image.to(device, torch.float32)[None, None], size=model.base.config.spatial_size, mode="trilinear"
    )
    with (
        torch.inference_mode(),
        torch.autocast(device.type, enabled=False),
        model.adapters.enabled([model.name]),
    ):
        embedding = model.embed(view, modalities[:1])
        maps = [model.segment(embedding, text_prompts([tasks], [name]).to(device)) for name in modalities]
    flat = torch.stack(maps).flatten(2).cpu()
    places = torch.linspace(0, flat.shape[2] - 1, VOXELS).long()
    return flat[:, :, places].clone()
