"""Tensors that follow from parameters alone, kept between calls."""

from collections.abc import Callable

import torch
from torch import Tensor


class Derived:
    """Keeps tensors computed from parameters or buffers as long as those stay what they are.

    Where a gradient is wanted they are computed anew, so that it reaches the parameters. Changes are seen by address
    and version: in-place operations, optimisers and loading count, writing through `.data` and fused optimisers do not.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[object, Tensor]] = {}

    def get(self, name: str, sources: tuple[Tensor, ...], compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives, from memory where no source changed since."""
        wanted = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
        if wanted or any(source.is_inference() for source in sources):  # inference tensors don't tell of changes
            return compute()
        state = tuple((s.data_ptr(), s._version, s.dtype, s.device) for s in sources)
        kept = self._kept.get(name)
        if kept is None or kept[0] != state:
            # A tensor made in inference mode could not take part in training later.
            with torch.inference_mode(False), torch.no_grad():
                kept = (state, compute())
            self._kept[name] = kept
        return kept[1]
