"""What comparisons and evaluations left on disk, to be judged together: no score may come from two sources."""

from dataclasses import dataclass, field
from pathlib import Path

from adaptmedseg.comparison.job import Cost
from adaptmedseg.comparison.plan import Terms
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.study import StudyData, StudyNotes

SAME = 1e-3  # what two machines may differ by in a Dice of the same weights


@dataclass(frozen=True)
class FinishedRun:
    """The scores of one training, or of a model that was asked: `seed`, `patients` (of each data set; None for all) and
    `fold` as it was trained, where a comparison says so; what was `evaluated` tells none of these."""

    strategy: str
    records: list[Record]
    seed: int | None = None
    patients: int | None = None
    fold: int | None = None
    cost: Cost | None = None
    folder: Path | None = None
    evaluated: bool = False

    @property
    def label(self) -> str:
        """How a run is called in sentences."""
        return self.strategy if self.seed is None else f"{self.strategy}, seed {self.seed}"

    def same_scores(self, other: "FinishedRun") -> bool:
        """Whether both hold the same scores but for rounding."""
        first, second = ({r.score_key: r.dice for r in run.records} for run in (self, other))
        return first.keys() == second.keys() and all(
            a is b or (a is not None and b is not None and abs(a - b) <= SAME)
            for a, b in ((dice, second[key]) for key, dice in first.items())
        )


@dataclass
class Finished:
    """All that was found: `new` and `old` are names of data sets, `scratch` the strategies that start from no base,
    `untrained` the comparisons' bases as they are, `first_evaluated` the first method of each evaluation, `missing`
    sentences on what should be there and is not, `notes` what a report says beside the scores, `configs` one
    configuration a strategy, `sources` the data sets that can be read from here with their cases to score, `unread` why
    others cannot."""

    runs: list[FinishedRun] = field(default_factory=list)
    new: set[str] = field(default_factory=set)
    old: set[str] = field(default_factory=set)
    scratch: set[str] = field(default_factory=set)
    untrained: set[str] = field(default_factory=set)
    first_evaluated: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    notes: StudyNotes = field(default_factory=StudyNotes)
    configs: dict[str, str] = field(default_factory=dict)
    terms: Terms | None = None
    sources: dict[str, StudyData] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """Sentences on all that is missing."""
        if not self.unread:
            return self.missing
        why = next(iter(self.unread.values()))
        names = ", ".join(self.unread)
        return [*self.missing, f"Licence and number of cases are not known of {names}: {why}."]

    @property
    def strategies(self) -> list[str]:
        return list(dict.fromkeys(run.strategy for run in self.runs))

    def add(self, run: FinishedRun) -> None:
        """Add scores; those of an untrained base that every comparison scores again count once.

        UserError where others have their name, seed, patients and fold.
        """
        for other in self.runs:
            if run.strategy != other.strategy:
                continue
            own, others = ((one.seed, one.patients, one.fold) for one in (run, other))
            if not (run.evaluated or other.evaluated or own == others):
                continue
            if run.strategy in self.untrained and not (run.evaluated or other.evaluated) and run.same_scores(other):
                return
            remedy = "evaluate it under another name" if run.evaluated or other.evaluated else "judge them apart"
            raise UserError(
                f"{run.folder}: '{run.label}' has scores in {other.folder} too; leave one of the two out or {remedy}"
            )
        self.runs.append(run)

    def check_once(self) -> None:
        """UserError where a training, or two of one strategy and seed, scored one structure of a case twice. Old data
        alone are scored again by the trainings of every fold."""
        seen: dict[tuple[object, ...], FinishedRun] = {}
        for run in self.runs:
            for record in run.records:
                fold = None if record.dataset in self.new else (run.fold, record.fold)
                place = (*record.case_key, record.structure, record.prompt_origin, fold)
                key = (run.strategy, run.seed, run.patients, *place)
                other = seen.get(key)
                if other is not None:
                    where = "twice" if other is run else f"and so does {other.folder}"
                    raise UserError(
                        f"{run.folder}: '{run.label}' scores {record.structure} in case {record.case} of "
                        f"{record.dataset} {where}; leave one of the two out"
                    )
                seen[key] = run
