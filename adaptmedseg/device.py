"""Which device work runs on."""

import torch

from adaptmedseg.errors import UserError


def pick_device(name: str) -> torch.device:
    """'auto' takes CUDA, then Apple's MPS, then the CPU; any other name must exist here."""
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    if name.split(":")[0] not in available:
        raise UserError(f"--device {name}: not available on this machine; choose one of auto, {', '.join(available)}")
    return torch.device(name)
