"""Which device work runs on."""

import ctypes
import sys
from contextlib import suppress

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


def keep_freed_memory() -> None:
    """Tell the C library (glibc) to keep blocks of up to 32 MB instead of returning them to the system.

    Activations of that size are otherwise mapped, cleared and unmapped at every layer, which costs more than the layer
    norm that writes them. A setting of the whole process, so for programs to call, not for libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    mmap_threshold, trim_threshold = -3, -1  # names of malloc.h
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 1 << 30)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given; clocks are read after it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
