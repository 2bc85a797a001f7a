"""How far a training is, and what it did in the end."""

from dataclasses import dataclass, field

from adaptmedseg.training.config import LoopConfig


@dataclass
class Position:
    """What a checkpoint holds beside tensors: steps, seconds that count against the budget, validations made, the best
    of them and how many came after it, losses since the last row of the history, and that history: one row a logged
    step (step, minutes, loss, lr, and scores where validated)."""

    step: int = 0
    seconds: float = 0.0
    checks: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    recent: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)

    def done(self, config: LoopConfig) -> float:
        """The share of the budget that is spent; 1 or more where patience has come to its end."""
        if config.selection.patience is not None and self.waited >= config.selection.patience:
            return 1.0
        budget = config.budget
        return self.step / budget.steps if budget.steps else self.seconds / 60 / (budget.minutes or 1)

    def check_is_due(self, config: LoopConfig) -> bool:
        """Whether it is time to validate: as often as the configuration says, evenly spread over the budget."""
        return self.done(config) * config.validations >= self.checks + 1

    def is_best(self, value: float) -> bool:
        """Take note of a validation; whether it is the best so far. No number is never the best."""
        self.checks += 1
        better = value > (-float("inf") if self.best is None else self.best)
        if better:
            self.best, self.best_step, self.waited = value, self.step, 0
        else:
            self.waited += 1
        return better

    def row(self, lr: float) -> dict[str, float]:
        """The history's next row, with the mean of the losses since the last."""
        loss = sum(self.recent) / len(self.recent)
        self.recent = []
        return {"step": self.step, "minutes": self.seconds / 60, "loss": loss, "lr": lr}

    def notes(self, config: LoopConfig) -> list[str]:
        """What is to be said of the choice of weights."""
        said, metric = [], config.selection.metric
        if config.selection.patience is not None and self.waited >= config.selection.patience:
            said.append(f"ended at step {self.step}: {self.waited} validations brought no better {metric}")
        if config.selection.keep == "best" and self.best is not None:
            said.append(f"the weights are those of step {self.best_step}, with the best {metric}: {self.best:.3f}")
        return said


@dataclass
class TrainResult:
    """What a training did: its history, as in `Position`, how many numbers it trained, and what is to be said of it."""

    history: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    minutes: float = 0.0
    trained: int = 0
    notes: list[str] = field(default_factory=list)
