"""Which of the tokens [tasks, modality] may be seen by what: padding by nothing, other tasks' tokens only if wanted."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLayout:
    """A sequence of tokens (b, k + l, c): k tasks, then the l tokens of each image's modality.

    `independent`: features see modality tokens alone, and a task sees no other task, so that its answer does not depend
    on what else is asked. Otherwise all tasks asked together see each other, through the features, as in Hermes.
    `padding` (b, k) is true where a column only fills a shorter list; None where nothing is padded. Nothing sees it.
    """

    n_tasks: int
    independent: bool = False
    padding: Tensor | None = None

    def seen_by_features(self, priors: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens (b, t, c) that features attend to, and the mask for `attend`."""
        if self.independent:
            return priors[:, self.n_tasks :], None
        if self.padding is None:
            return priors, None
        return priors, self._visible(priors.shape[1])[:, None, None]

    def joint_mask(self, n_features: int, n_priors: int, device: torch.device) -> Tensor | None:
        """For `attend` over [features, tasks, modality]: which query (row) may see which key; None where all may."""
        k, n = self.n_tasks, n_features
        if not self.independent:
            if self.padding is None:
                return None
            features = self.padding.new_ones(len(self.padding), n)
            return torch.cat([features, self._visible(n_priors)], dim=1)[:, None, None]
        allowed = torch.ones(n + n_priors, n + n_priors, dtype=torch.bool, device=device)
        allowed[:, n : n + k] = torch.eye(n + n_priors, dtype=torch.bool, device=device)[:, n : n + k]
        return allowed

    def _visible(self, n_priors: int) -> Tensor:
        """(b, k + l): every token but padding."""
        assert self.padding is not None
        modality = self.padding.new_ones(len(self.padding), n_priors - self.n_tasks)
        return torch.cat([~self.padding, modality], dim=1)
