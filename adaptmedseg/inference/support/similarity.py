"""What a query's features say of a structure, by their similarity to those of the supports."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptmedseg.inference.support.frozen import Encoded

# Temperatures of the similarity, and how far apart in the picture (as a fraction of it) cells may lie; calibration
# weighs these views of one support set against each other.
KERNELS: tuple[tuple[float, float | None], ...] = ((0.03, None), (0.1, None), (0.03, 0.15), (0.1, 0.15))
MOST_CELLS = 12288  # of a bank
ROWS = 1024  # query cells that are looked at together
EPSILON = 1e-3


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one support: features (n, c), positions (n, 2), the share (n,) of each that the structure covers,
    and log_weight (n,), which makes up for cells that were left out."""

    features: Tensor
    positions: Tensor
    coverage: Tensor
    log_weight: Tensor

    def thinned(self, most: int, generator: torch.Generator) -> Cells:
        """At most so many cells: those that the structure touches first, the others drawn at random."""
        if len(self.coverage) <= most:
            return self
        touched = self.coverage > 0
        parts = []
        for rows, room in ((touched.nonzero()[:, 0], most // 2), ((~touched).nonzero()[:, 0], most - most // 2)):
            drawn = rows[torch.randperm(len(rows), generator=generator).to(rows.device)[:room]]
            weight = self.log_weight[drawn] + torch.log(torch.tensor(max(len(rows), 1) / max(len(drawn), 1)))
            parts.append((drawn, weight))
        rows = torch.cat([drawn for drawn, _ in parts])
        return Cells(
            self.features[rows], self.positions[rows], self.coverage[rows], torch.cat([weight for _, weight in parts])
        )


def cells_of(encoded: Encoded, coverage: Tensor) -> Cells:
    """The cells of a support whose structure covers `coverage` (g, g) of the grid."""
    found = coverage[encoded.inside]
    return Cells(encoded.features, encoded.positions, found, torch.zeros_like(found))


class Bank:
    """The cells of a few supports, to compare a query with.

    Features are compared by the cosine, after the mean of the supports' features is taken away: what all cells of all
    images share says nothing.
    """

    def __init__(self, supports: list[Cells], seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        kept = [cells.thinned(MOST_CELLS // len(supports), generator) for cells in supports]
        features = torch.cat([cells.features for cells in kept])
        self.centre = features.mean(0)
        self.features = F.normalize(features - self.centre, dim=1)
        self.positions = torch.cat([cells.positions for cells in kept])
        self.coverage = torch.cat([cells.coverage for cells in kept])
        self.log_weight = torch.cat([cells.log_weight for cells in kept])

    def nearest_prototype(self, encoded: Encoded) -> Tensor:
        """How much more alike the cells of a query (n,) are to the mean feature of the structure than to that of the
        rest; the baseline takes what is above zero."""
        weight = self.log_weight.exp()
        inside, outside = (
            F.normalize(share @ self.features, dim=0)
            for share in (weight * self.coverage, weight * (1 - self.coverage))
        )
        return self._compared(encoded) @ (inside - outside)

    def priors(self, encoded: Encoded) -> Tensor:
        """What is expected of each cell of a query (k, n): for every kernel the log-odds of the coverage of the
        supports' cells, weighed by their likeness, and last `nearest_prototype`."""
        compared, positions = self._compared(encoded), encoded.positions
        parts = [
            self._expected(rows, places)
            for rows, places in zip(compared.split(ROWS), positions.split(ROWS), strict=True)
        ]
        odds = torch.logit(torch.cat(parts, dim=1), EPSILON)
        return torch.cat([odds, self.nearest_prototype(encoded)[None]])

    def _compared(self, encoded: Encoded) -> Tensor:
        return F.normalize(encoded.features - self.centre, dim=1)

    def _expected(self, features: Tensor, positions: Tensor) -> Tensor:
        likeness = features @ self.features.mT
        apart = torch.cdist(positions, self.positions).square()
        expected = []
        for temperature, reach in KERNELS:
            scores = likeness / temperature + self.log_weight
            if reach is not None:
                scores = scores - apart / (2 * reach**2)
            expected.append(scores.softmax(dim=1) @ self.coverage)
        return torch.stack(expected)
