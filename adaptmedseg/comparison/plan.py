"""What a comparison is: the same data, seeds and budget for all strategies, checked before the first one trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from adaptmedseg.checkpoints.fresh import seeded
from adaptmedseg.checkpoints.store import load_base, weights_hash
from adaptmedseg.comparison.job import COST, JOB, RUN, SCORES, Job, Question
from adaptmedseg.comparison.strategies import Strategy
from adaptmedseg.data.files import file_sha256, write_atomic
from adaptmedseg.data.prepared import PreparedCase, PreparedDataset
from adaptmedseg.data.prepared.manifest import MANIFEST
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.study import StudyData, study_data
from adaptmedseg.inference.loading import load_model
from adaptmedseg.training.config import BudgetConfig, NoTraining

PLAN = "comparison.json"


class Terms(BaseModel):
    """What all strategies of a comparison share: data sets by folder with the hash of their manifests, the hash of the
    base's weights, the budget of each training, the fold that is kept aside, and how many patients of each new set to
    train on (None for all)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    new: dict[str, str]
    old: dict[str, str]
    base: str
    base_hash: str
    budget: BudgetConfig
    fold: int | None
    patients: int | None = None


@dataclass(frozen=True)
class Task:
    """One job and its folder; `seed` is None where nothing is trained."""

    folder: Path
    seed: int | None
    job: Job


@dataclass(frozen=True)
class Plan:
    """The terms, and the data sets that are new and old to the base, with their cases to score."""

    terms: Terms
    new: list[StudyData]
    old: list[StudyData]
    questions: list[Question]

    @property
    def new_names(self) -> frozenset[str]:
        """Names of the data sets that are trained on."""
        return frozenset(source.dataset.name for source in self.new)


def make_plan(
    new: Sequence[Path],
    old: Sequence[Path],
    base: str,
    budget: BudgetConfig,
    fold: int | None,
    patients: int | None = None,
) -> Plan:
    """Open everything. UserError for a base or data set that can't be used, sets of one name, no case to score, and a
    set whose training and test cases share no structure."""
    base = seeded(base, 0)  # one start for all, whatever the seeds of the trainings
    weights = weights_hash(load_base(base)[0])
    known = load_model(base).structures
    new_data = [study_data(path, "test", fold) for path in new]
    old_data = [study_data(path, "test", _fold_of(path, fold)) for path in old]
    names = [source.dataset.name for source in (*new_data, *old_data)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"two data sets are called '{twice[0]}'; prepare one of them with another --name")
    questions = [
        Question(path=str(path), fold=fold, structures=_taught(path, source, fold))
        for path, source in zip(new, new_data, strict=True)
    ]
    questions += [
        Question(path=str(path), fold=_fold_of(path, fold), structures=_remembered(path, source, known))
        for path, source in zip(old, old_data, strict=True)
    ]
    terms = Terms(
        new={str(path): file_sha256(path / MANIFEST) for path in new},
        old={str(path): file_sha256(path / MANIFEST) for path in old},
        base=base,
        base_hash=weights,
        budget=budget,
        fold=fold,
        patients=patients,
    )
    return Plan(terms, new_data, old_data, questions)


def _fold_of(path: Path, fold: int | None) -> int | None:
    """The fold to score of an old set: where it has none, its split 'test' is as good, for nothing trains on it."""
    return fold if PreparedDataset.open(path).folds else None


def _annotated(cases: Sequence[PreparedCase]) -> set[str]:
    return {name for case in cases for name in case.annotated}


def _taught(path: Path, source: StudyData, fold: int | None) -> list[str]:
    """Structures that a set's training cases teach and its test cases can check."""
    dataset = source.dataset
    training = dataset.cases("train") if fold is None else dataset.fold(fold)[0]
    shared = _annotated(training) & _annotated(source.cases)
    if not shared:
        raise UserError(
            f"{path}: training and test cases have no structure in common; prepare it with another --test-fraction"
        )
    return sorted(shared)


def _remembered(path: Path, source: StudyData, known: Sequence[str]) -> list[str]:
    """Structures of an old set that the base was trained on."""
    held = _annotated(source.cases)
    shared = held & set(known) if known else held
    if not shared:
        raise UserError(
            f"{path}: the base was trained on none of its structures ({', '.join(sorted(held)) or 'none'}); give a "
            f"set with some of {', '.join(known)} as --old"
        )
    return sorted(shared)


def settings_of(terms: Terms) -> Mapping[str, object]:
    """What the terms replace in every strategy's configuration."""
    return {
        "base": terms.base,
        "budget": terms.budget.model_dump(),
        "data.paths": list(terms.new),
        "data.fold": terms.fold,
        "data.patients": terms.patients,
        "validations": 0,
    }


def tasks_of(plan: Plan, strategies: Sequence[Strategy], seeds: Sequence[int], out: Path) -> list[Task]:
    """All jobs, strategy by strategy. Where nothing is trained there is one, for no seed has a say."""
    tasks: list[Task] = []
    for strategy in strategies:
        trains = not isinstance(strategy, NoTraining)
        for seed in seeds if trains else [None]:
            config = None if isinstance(strategy, NoTraining) else strategy.model_copy(update={"seed": seed})
            job = Job(
                name=strategy.name,
                base=plan.terms.base,
                config=config,
                questions=plan.questions,
            )
            folder = out / strategy.name if seed is None else out / strategy.name / f"seed{seed}"
            tasks.append(Task(folder, seed, job))
    return tasks


def is_done(task: Task) -> bool:
    """Whether a job's scores are there, and what its training cost."""
    trained = task.job.config is None or ((task.folder / COST).exists() and (task.folder / RUN).is_dir())
    return trained and (task.folder / SCORES).exists()


def claim(out: Path, terms: Terms, tasks: Sequence[Task]) -> None:
    """Make or continue the folder of a comparison. UserError for a folder of another one, or of something else, and
    for a strategy that was trained there with another configuration; nothing is changed then."""
    path = out / PLAN
    if path.is_file():
        _check_terms(path, terms)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds something else; choose a new folder for --out")
    for task in tasks:
        _check_job(task)
    write_atomic(path, terms.model_dump_json(indent=1))
    for task in tasks:
        write_atomic(task.folder / JOB, task.job.to_yaml())


def _check_terms(path: Path, terms: Terms) -> None:
    try:
        found = Terms.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        raise UserError(f"{path}: is damaged; remove the folder or choose a new --out") from None
    for key in Terms.model_fields:
        if getattr(found, key) != getattr(terms, key):
            raise UserError(f"{path}: is another comparison (its {key} differs); choose a new --out or remove it")


def _check_job(task: Task) -> None:
    path = task.folder / JOB
    if not path.is_file():
        return
    if Job.from_yaml(path) != task.job:
        raise UserError(
            f"{task.folder}: '{task.job.name}' was compared with another configuration here; remove that folder or "
            "choose a new --out"
        )
