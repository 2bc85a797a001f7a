"""A transfer study: what was learned on old data, held against new data, by strategy, data set, site and patients."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from adaptmedseg.comparison.finished import Finished, FinishedRun
from adaptmedseg.comparison.judge import Judged, Scores, judge
from adaptmedseg.comparison.transfer_tables import ALL_PATIENTS, BASE_TICK, Curves
from adaptmedseg.data.registry import modality
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.group_figures import CurvePoint
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.tables import ALL_STRUCTURES, aggregate

NEW, OLD = "new", "old"
EVERY_NEW = "all new data"


@dataclass(frozen=True)
class Transfer:
    """The study: `sides` judges new and old data by family (CT, MRI), `datasets` and `structures` each data set,
    `sites` each site of the new data, empty where fewer than two are known. `left_out` says whether each site was
    unknown to the training it is judged by. `curves` are by group and strategy, over `ticks`."""

    scores: Scores
    base: str
    reference: str
    best: str
    sides: list[Judged]
    datasets: list[Judged]
    structures: list[Judged]
    sites: list[Judged]
    left_out: bool
    ticks: list[str]
    curves: Curves

    @property
    def parts(self) -> dict[str, list[Judged]]:
        return {"side": self.sides, "data set": self.datasets, "structure": self.structures, "site": self.sites}


def side_of(record: Record, found: Finished) -> str:
    """'MRI, new', 'CT, old' and so on; a data set that no comparison knows is old where it is CT."""
    family = modality(record.modality).family
    known = record.dataset in found.new or record.dataset in found.old
    new = record.dataset in found.new if known else family != "CT"
    return f"{'MRI' if family == 'MR' else family}, {NEW if new else OLD}"


def study_transfer(found: Finished, base: str | None, reference: str | None, seed: int = 0) -> Transfer:
    """Judge all runs. The base is the strategy without training (else the first), the reference the base unless it is
    named; UserError for names that are not there."""
    runs = [run for run in found.runs if run.patients is None]
    if not any(run.cost is not None for run in runs) and any(run.patients for run in found.runs):
        most = max(run.patients or 0 for run in found.runs)
        runs = [run for run in found.runs if run.patients in (None, most)]
    names = list(dict.fromkeys(run.strategy for run in runs))
    untrained = [run.strategy for run in runs if run.seed is None and run.strategy not in found.scratch]
    base = _chosen(base, (untrained or names)[0], names, "--base")
    reference = _chosen(reference, base, names, "--reference")
    scores = Scores.of(runs)
    _check_sides(scores.records, found)

    def side(record: Record) -> str:
        return side_of(record, found)

    def dataset(record: Record) -> str:
        return f"{record.dataset} ({record.modality})"

    sides = judge(scores, base, reference, side, structures=False, seed=seed)
    sited = _sited(scores, found)
    ticks, curves = _curves(found, base, seed)
    return Transfer(
        scores,
        base,
        reference,
        _best(sides, base, found),
        sides,
        judge(scores, base, reference, dataset, structures=False, seed=seed),
        judge(scores, base, reference, dataset, structures=True, seed=seed),
        judge(sited, base, reference, site_of, structures=False, seed=seed) if sited.records else [],
        _left_out(sited.runs),
        ticks,
        curves,
    )


def _chosen(name: str | None, default: str, names: Sequence[str], option: str) -> str:
    if name is not None and name not in names:
        raise UserError(f"{option} {name}: has no scores here; choose one of {', '.join(names)}")
    return name or default


def _check_sides(records: Sequence[Record], found: Finished) -> None:
    splits = sorted({record.split for record in records})
    if len(splits) > 1:
        raise UserError(f"the scores mix the splits {', '.join(splits)}; judge evaluations of one split together")


def _best(sides: Sequence[Judged], base: str, found: Finished) -> str:
    """The strategy with the highest mean on new data that started from a base; oracle prompts do not count."""
    ranked = [
        item.row
        for item in sides
        if item.row.modality.endswith(NEW) and item.row.mean is not None and not item.row.is_oracle
        and item.row.method not in (base, *found.scratch)
    ]  # fmt: skip
    return max(ranked, key=lambda row: row.mean or 0.0).method if ranked else base


def site_of(record: Record) -> str:
    """The site that a record names, or an empty word."""
    return str(record.extra.get("site") or "")


def _sited(scores: Scores, found: Finished) -> Scores:
    """Scores on new data with a site; none where fewer than two sites are known."""
    kept = [r for r in scores.records if site_of(r) and side_of(r, found).endswith(NEW)]
    if len({site_of(record) for record in kept}) < 2:
        return Scores([], [])
    runs = [
        FinishedRun(run.strategy, [r for r in run.records if site_of(r)], run.seed, run.patients, run.fold)
        for run in scores.runs
    ]
    return Scores(runs, kept)


def _left_out(runs: Sequence[FinishedRun]) -> bool:
    """Whether every fold is one site, and every site one fold."""
    pairs = {(run.fold, site_of(record)) for run in runs for record in run.records}
    folds, sites = {fold for fold, _ in pairs}, {site for _, site in pairs}
    return bool(pairs) and None not in folds and len(pairs) == len(folds) == len(sites)


def _curves(found: Finished, base: str, seed: int) -> tuple[list[str], Curves]:
    """Learning curves of the strategies that were trained on at least two numbers of patients."""
    by_count: dict[str, set[int | None]] = defaultdict(set)
    for run in found.runs:
        if run.cost is not None:
            by_count[run.strategy].add(run.patients)
    strategies = [name for name, counts in by_count.items() if len(counts) > 1]
    counts = sorted({c for name in strategies for c in by_count[name] if c is not None})
    ticks = [BASE_TICK, *map(str, counts), ALL_PATIENTS] if strategies else []
    curves: dict[str, dict[str, list[CurvePoint]]] = defaultdict(lambda: defaultdict(list))
    for tick, patients in zip(ticks, [None, *counts, None], strict=True) if ticks else ():
        for name in strategies:
            asked = base if tick == BASE_TICK else name
            if tick == BASE_TICK and name in found.scratch:
                continue
            runs = [run for run in found.runs if run.strategy == asked and run.patients == patients]
            for group, point in _points(runs, found, tick, seed).items():
                curves[group][name].append(point)
    return ticks, curves


def _points(runs: Sequence[FinishedRun], found: Finished, tick: str, seed: int) -> dict[str, CurvePoint]:
    """Means on all new data, and on each new data set."""
    records = [record for record in Scores.of(runs).records if side_of(record, found).endswith(NEW)]
    points: dict[str, CurvePoint] = {}
    for group in (lambda _record: EVERY_NEW, lambda record: f"{record.dataset} ({record.modality})"):
        for row in aggregate(records, seed=seed, group=group):
            if row.structure == ALL_STRUCTURES and row.mean is not None:
                points.setdefault(row.modality, CurvePoint(tick, row.mean, row.interval))
    return points
