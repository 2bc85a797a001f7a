"""What looks on while a training runs: progress bars, files of losses, trackers."""

from pathlib import Path


class Observer:
    """Is told what happens, on the first process alone; by itself it does nothing."""

    def started(self, step: int) -> None:
        """Training starts after `step` steps: 0, or where a checkpoint left off. Later rows seen before are void."""

    def logged(self, done: float, row: dict[str, float]) -> None:
        """A row of the history; `done` is the share of the budget that is spent, in [0, 1]."""

    def saved(self, step: int, path: Path) -> None:
        """A checkpoint was written."""

    def noted(self, text: str) -> None:
        """Something the user should know: a sentence."""

    def ended(self, step: int) -> None:
        """The budget is spent."""

    def interrupted(self, step: int) -> None:
        """Training ends before its budget is spent: it was stopped, or failed."""
