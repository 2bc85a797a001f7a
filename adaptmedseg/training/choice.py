"""Which case comes next, and which of its structures: every case once an epoch, or balanced by temperatures."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from adaptmedseg.training.config import BalanceConfig


class Drawn(Protocol):
    """What is drawn from: a view of any kind."""

    @property
    def modality(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def structures(self) -> list[str]: ...


class Choice:
    """Draws cases and structures. The case at a position depends on the seed and the position alone."""

    def __init__(self, views: Sequence[Drawn], balance: BalanceConfig, seed: int):
        self.count = len(views)
        self.seed = seed
        cases = Counter(name for view in views for name in view.structures)
        # A structure that n cases show is drawn in proportion to n^(1/T), which its n cases share.
        self.rarity = {name: n ** (1 / balance.structure - 1) for name, n in cases.items()}
        self.even_structures = balance.structure == 1
        self.shares = None if balance == BalanceConfig() else _case_shares(views, balance, self.rarity)

    def case(self, position: int) -> int:
        """The case at a position of the stream; without balance every epoch is a fresh permutation."""
        if self.shares is not None:
            return int(np.random.default_rng([self.seed, 5, position]).choice(self.count, p=self.shares))
        epoch, offset = divmod(position, self.count)
        return int(np.random.default_rng([self.seed, 7, epoch]).permutation(self.count)[offset])

    def structures(self, present: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
        """Up to `count` of the structures present, none twice; rare ones more often where balance asks for it."""
        weights = None
        if not self.even_structures:
            weights = np.array([self.rarity[name] for name in present])
            weights /= weights.sum()
        drawn = rng.choice(len(present), min(count, len(present)), replace=False, p=weights)
        return [present[i] for i in drawn]


def _case_shares(views: Sequence[Drawn], balance: BalanceConfig, rarity: dict[str, float]) -> np.ndarray:
    """Probability of every case: of its modality, of its data set within that, evenly within the set, and all of it
    weighted by how rare the case's structures are."""
    modalities = Counter(view.modality for view in views)
    datasets = Counter((view.modality, view.dataset) for view in views)
    by_modality = {name: n ** (1 / balance.modality) for name, n in modalities.items()}
    by_dataset = {key: n ** (1 / balance.dataset) for key, n in datasets.items()}
    siblings: dict[str, float] = defaultdict(float)
    for (modality, _), share in by_dataset.items():
        siblings[modality] += share
    shares = []
    for view in views:
        key = (view.modality, view.dataset)
        of_set = by_modality[view.modality] * by_dataset[key] / siblings[view.modality]
        shares.append(of_set / datasets[key] * float(np.mean([rarity[name] for name in view.structures])))
    return np.array(shares) / sum(shares)
