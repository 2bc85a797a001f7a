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
    kind, _, index = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if kind not in available or (":" in name and not (index.isdigit() and int(index) < count)):
        raise UserError(f"--device {name}: not available on this machine; choose one of auto, {', '.join(available)}")
    return torch.device(name)
