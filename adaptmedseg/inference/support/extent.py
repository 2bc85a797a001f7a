"""How much of a picture a structure fills: what supports agree about even where their intensities mislead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

MARGIN = 1.25  # beyond what the middle half of the supports fills


@dataclass(frozen=True)
class Extent:
    """The least and the most of a picture, as shares of its pixels, that a structure is expected to fill."""

    least: float
    most: float

    @classmethod
    def of(cls, masks: Sequence[np.ndarray]) -> Extent:
        """From the boolean masks (h, w) of supports, each of which shows the structure."""
        shares = [float(mask.mean()) for mask in masks]
        low, high = np.quantile(shares, (0.25, 0.75))
        return cls(float(low) / MARGIN, min(float(high) * MARGIN, 1.0))

    def applied(self, logits: Tensor) -> Tensor:
        """Logits (h, w), above zero where a structure is, moved by one number so that it fills no less and no more than
        expected.

        Regressions that were calibrated on few supports are sure of too much: of a query that looks a little different
        they find a core or nothing at all, where the order of its pixels is still right. For pictures that show the
        structure; one without it gets the least extent, too.
        """
        share = float((logits > 0).float().mean())
        wanted = float(np.clip(share, self.least, self.most))
        if wanted == share:
            return logits
        count = max(1, round(wanted * logits.numel()))
        ordered = logits.flatten().sort(descending=True).values
        after = ordered[min(count, len(ordered) - 1)]
        return logits - (ordered[count - 1] + after) / 2
