"""What a reproduction gives: ours beside the published figure, what is missing, and everything that decides ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import adaptmedseg
from adaptmedseg.evaluation.tables import Row
from adaptmedseg.reproduction.recipes import Recipe

Status = Literal["agrees", "differs", "no interval", "missing", "not given", "not comparable", "not ours"]
Place = tuple[str, str, str, str]
RECEIPT, PAGE = "receipt.json", "receipt.md"


@dataclass(frozen=True)
class Line:
    """One figure of a published table and ours, where there is one, in the table's own unit.

    `status` says whether the published figure lies in our interval; where there is none of ours, `reason` says why:
    "missing" is what data or weights lack, "not given" what the model, asked as it is, never answers.
    """

    method: str
    group: str
    structure: str
    measure: str
    published: float
    status: Status
    reason: str = ""
    ours: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0
    patients: int = 0
    prompt_origin: str = ""

    @classmethod
    def without(
        cls,
        place: Place,
        published: float,
        status: Literal["missing", "not given", "not comparable", "not ours"],
        reason: str = "",
    ) -> Line:
        """A figure that has none of ours beside it; `place` is method, group, structure and measure."""
        return cls(*place, published, status, reason)

    @classmethod
    def beside(cls, place: Place, published: float, row: Row, scale: float) -> Line:
        """A figure with ours beside it. ValueError where nothing was scored."""
        if row.mean is None:
            raise ValueError("no score, so no figure")
        interval = None if row.interval is None else (row.interval[0] * scale, row.interval[1] * scale)
        status: Status = "no interval"
        if interval is not None:
            status = "agrees" if interval[0] <= published <= interval[1] else "differs"
        return cls(
            *place, published, status, "", row.mean * scale, interval, row.n, row.patients, row.prompt_origin
        )  # fmt: skip


@dataclass(frozen=True)
class SetFacts:
    """A data set as it was used: `fingerprint` is over the hashes of the test cases' image files."""

    group: str
    name: str
    folder: str
    licence: str
    division: str
    seed: int | None
    cases: int
    test_cases: int
    test_patients: int
    fingerprint: str


@dataclass(frozen=True)
class ModelFacts:
    """A model as it was used: what it came from, the `seed` and `steps` of its last training where it says so."""

    method: str
    file: str
    lineage: str
    hashes: dict[str, str]
    seed: int | None
    steps: int | None

    @classmethod
    def of(cls, file: str, lineage: str, hashes: dict[str, str], training: Mapping[str, object]) -> ModelFacts:
        """A model before it has its row; `training` is what its card says of its last training."""
        seed, steps = (value if isinstance(value := training.get(name), int) else None for name in ("seed", "steps"))
        return cls("", Path(file).name, lineage, hashes, seed, steps)


@dataclass(frozen=True)
class Receipt:
    """All of it. `code` is the SHA-256 over the package's sources."""

    recipe: Recipe
    lines: list[Line]
    sets: list[SetFacts]
    models: list[ModelFacts]
    seed: int
    versions: dict[str, str]
    code: str = field(default_factory=lambda: code_fingerprint())

    @property
    def missing(self) -> list[str]:
        """What is missing, each reason once."""
        return list(dict.fromkeys(line.reason for line in self.lines if line.status == "missing"))

    def as_json(self) -> str:
        table: dict[str, Any] = {
            "format": "adaptmedseg receipt",
            "version": 1,
            "recipe": self.recipe.name,
            "source": self.recipe.source,
            "asked": self.recipe.ask,
            "complete": not self.missing,
            "missing": self.missing,
            "unknown": self.recipe.unknown,
            "code_sha256": self.code,
            "versions": self.versions,
            "bootstrap_seed": self.seed,
            "data": [asdict(facts) for facts in self.sets],
            "models": [asdict(facts) for facts in self.models],
            "lines": [asdict(line) for line in self.lines],
        }
        return json.dumps(table, indent=1, ensure_ascii=False) + "\n"

    def as_markdown(self) -> str:
        recipe = self.recipe
        parts = [
            f"# {recipe.title}",
            f"Published: {recipe.source}. Ours: asked by '{recipe.ask}', mean over cases with a 95 % bootstrap "
            "interval over patients.",
            _table(self.lines),
            *_listed("Missing", self.missing),
            *_listed("What the source leaves open", recipe.unknown),
            *_listed("Data", [_of_set(facts) for facts in self.sets]),
            *_listed("Models", [_of_model(facts) for facts in self.models]),
            f"Code: adaptmedseg {adaptmedseg.__version__}, SHA-256 of its sources {self.code}; "
            f"bootstrap seed {self.seed}; "
            + ", ".join(f"{name} {version}" for name, version in self.versions.items() if name != "adaptmedseg")
            + ".",
        ]
        return "\n\n".join(parts) + "\n"


def _table(lines: Sequence[Line]) -> str:
    head = ["method", "data", "structure", "measure", "published", "ours", "95 % interval", "cases", "result"]
    rows = [head, ["---", "---", "---", "---", "--:", "--:", "--:", "--:", "---"]]
    for line in lines:
        interval = "" if line.interval is None else f"{line.interval[0]:.4g} to {line.interval[1]:.4g}"
        ours = "—" if line.ours is None else f"{line.ours:.4g}"
        said: dict[str, str] = {
            "agrees": "published lies in our interval",
            "differs": "published lies outside of our interval",
            "not given": "not given by this model",
        }
        result = said.get(line.status, line.status) + (f": {line.reason}" if line.reason else "")
        rows.append(
            [line.method, line.group, line.structure, line.measure, f"{line.published:g}", ours, interval,
             str(line.n or ""), result]
        )  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _listed(title: str, items: Sequence[str]) -> list[str]:
    return [f"{title}:\n\n" + "\n".join(f"- {item}" for item in items)] if items else []


def _of_set(facts: SetFacts) -> str:
    return (
        f"{facts.group}: {facts.name}, {facts.test_cases} test cases of {facts.test_patients} patients out of "
        f"{facts.cases} cases ({facts.division}); images SHA-256 {facts.fingerprint}; licence: {facts.licence}"
    )


def _of_model(facts: ModelFacts) -> str:
    seed = "no seed stated" if facts.seed is None else f"seed {facts.seed}"
    steps = "no steps stated" if facts.steps is None else f"{facts.steps} steps"
    hashes = ", ".join(f"{name} {value}" for name, value in facts.hashes.items())
    return f"{facts.method}: {facts.lineage}; {seed}, {steps}; {hashes}"


def fingerprint(hashes: Sequence[str]) -> str:
    """SHA-256 over hashes, whatever their order."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def code_fingerprint() -> str:
    """SHA-256 over all sources of the package, so that a changed checkout is told from a release."""
    root = Path(adaptmedseg.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
