"""Learnt tokens: one a task, a set a modality. Pools grow by rows, and old rows can be kept as they are."""

import torch
from torch import Tensor, nn


def grown(table: Tensor, sources: list[int | None], fresh: Tensor) -> Tensor:
    """`table` (n, ...) with a row more for each source: a copy of row `source`, or, for None, its row of `fresh`."""
    rows = [fresh[i] if source is None else table[source] for i, source in enumerate(sources)]
    return torch.cat([table, torch.stack(rows)]) if rows else table


def frozen_share(*tables: tuple[Tensor, int]) -> int:
    """How many numbers the first rows hold, over pairs of a table and how many of its first rows are meant."""
    return sum(table[:rows].numel() for table, rows in tables)


def partly_frozen(table: Tensor, frozen: int) -> Tensor:
    """The same table, whose first `frozen` rows get no gradient: their values stay what they are, to the bit."""
    return torch.cat([table[:frozen].detach(), table[frozen:]]) if frozen else table


class PriorPool(nn.Module):
    """Hermes' pools. Task tokens, one a task; the last is the null token, index −1, which pads. Modality tokens, a set
    a modality; for a modality that is not known, index −1, the mean of all sets stands in.

    `frozen_tasks` and `frozen_modalities`: how many of the first get no gradient.
    """

    def __init__(self, n_tasks: int, n_modalities: int, tokens_per_modality: int, channels: int):
        super().__init__()
        self.task_prior = nn.Parameter(torch.empty(n_tasks + 1, channels))
        self.modality_prior = nn.Parameter(torch.empty(n_modalities, tokens_per_modality, channels))
        nn.init.xavier_uniform_(self.task_prior)
        nn.init.xavier_uniform_(self.modality_prior)
        self.frozen_tasks = 0
        self.frozen_modalities = 0

    def tasks(self, tasks: Tensor) -> Tensor:
        """Indices (b, k), −1 for padding, to tokens (b, k, c)."""
        table = partly_frozen(self.task_prior, self.frozen_tasks)
        return table[torch.where(tasks < 0, len(table) - 1, tasks)]

    def modalities(self, modality: Tensor) -> Tensor:
        """Indices (b,), −1 for unknown, to tokens (b, l, c)."""
        table = partly_frozen(self.modality_prior, self.frozen_modalities)
        if not (modality < 0).any():
            return table[modality]
        known = torch.cat([table, table.mean(0, keepdim=True)])
        return known[torch.where(modality < 0, len(table), modality)]

    def mean_modality(self, chosen: Tensor) -> Tensor:
        """The mean (l, c) over the sets of some modalities, (m,) true for each; of all where none is chosen."""
        table = partly_frozen(self.modality_prior, self.frozen_modalities)
        return (table[chosen] if chosen.any() else table).mean(0)

    def frozen_numbers(self) -> int:
        """How many numbers get no gradient."""
        return frozen_share((self.task_prior, self.frozen_tasks), (self.modality_prior, self.frozen_modalities))

    def forward(self, tasks: Tensor, modality: Tensor) -> Tensor:
        """tasks (b, k) and modality (b,) to the sequence (b, k + l, c)."""
        return torch.cat([self.tasks(tasks), self.modalities(modality)], dim=1)

    @torch.no_grad()
    def grow(self, tasks: list[int | None], modalities: list[int | None]) -> None:
        """Add tokens: copies of a relative's (by index), or, for None, fresh ones. The null token stays the last."""
        n_tasks = len(self.task_prior) - 1
        n_modalities, per_modality, channels = self.modality_prior.shape
        fresh = PriorPool(n_tasks + len(tasks), n_modalities + len(modalities), per_modality, channels)
        fresh.to(self.task_prior)
        new_tasks = grown(self.task_prior[:n_tasks], tasks, fresh.task_prior[n_tasks:-1])
        self.task_prior = nn.Parameter(torch.cat([new_tasks, self.task_prior[-1:]]))
        self.modality_prior = nn.Parameter(grown(self.modality_prior, modalities, fresh.modality_prior[n_modalities:]))


class PromptTokens(nn.Module):
    """Tokens that act where prompts do, for learning nothing but tokens on a base without fusion.

    A task's token is added to the embedding of its name, from which both the text prompt and the text's weights of the
    mask are made; a modality's token to the dense prompt, which is added to every token of the image. All start at
    zero: a fresh module changes nothing, and its gradient is not zero.
    """

    def __init__(self, n_tasks: int, n_modalities: int, channels: int):
        super().__init__()
        self.task_token = nn.Parameter(torch.zeros(n_tasks, channels))
        self.modality_token = nn.Parameter(torch.zeros(n_modalities, channels))
        self.frozen_tasks = 0
        self.frozen_modalities = 0

    def tasks(self, tasks: Tensor) -> Tensor:
        """Indices (n,), −1 for none, to what is added to the names' embeddings (n, c)."""
        return _rows_or_zero(partly_frozen(self.task_token, self.frozen_tasks), tasks)

    def modalities(self, modality: Tensor) -> Tensor:
        """Indices (b,), −1 for none, to what is added to the images' tokens (b, c)."""
        return _rows_or_zero(partly_frozen(self.modality_token, self.frozen_modalities), modality)

    def frozen_numbers(self) -> int:
        """How many numbers get no gradient."""
        return frozen_share((self.task_token, self.frozen_tasks), (self.modality_token, self.frozen_modalities))

    @torch.no_grad()
    def grow(self, tasks: list[int | None], modalities: list[int | None]) -> None:
        """Add tokens: copies of a relative's (by index), or, for None, zeros."""
        channels = self.task_token.shape[1]
        self.task_token = nn.Parameter(grown(self.task_token, tasks, self.task_token.new_zeros(len(tasks), channels)))
        zeros = self.modality_token.new_zeros(len(modalities), channels)
        self.modality_token = nn.Parameter(grown(self.modality_token, modalities, zeros))


def _rows_or_zero(table: Tensor, index: Tensor) -> Tensor:
    rows = torch.cat([table, torch.zeros_like(table[:1])])
    return rows[torch.where(index < 0, len(table), index)]
