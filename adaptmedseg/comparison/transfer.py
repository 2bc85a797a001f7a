"""A transfer study: what was learned on old data, held against new data, by strategy, data set, site and patients."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adaptmedseg.comparison.finished import Finished, FinishedRun
from adaptmedseg.comparison.judge import Judged, Scores, judge
from adaptmedseg.comparison.sides import NEW, on_new, side_of
from adaptmedseg.comparison.transfer_curves import dataset_of, learning_curves
from adaptmedseg.comparison.transfer_tables import Curves
from adaptmedseg.errors import UserError
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.tables import Row


@dataclass(frozen=True)
class Transfer:
    """The study: `sides` judges new and old data by family (CT, MRI), `datasets` and `structures` each data set,
    `sites` each site of the new data, empty where fewer than two are known. `left_out` says whether each site was
    unknown to the training it is judged by. `curves` are by group and strategy, over `ticks`. `adapting` are, by side
    of new data, the rows of strategies that adapt the base, the highest mean first; `best` leads on the side with the
    most cases, and is the base where nothing adapts it. `seed` is that of all intervals."""

    scores: Scores
    base: str
    reference: str
    best: str
    adapting: dict[str, list[Row]]
    seed: int
    sides: list[Judged]
    datasets: list[Judged]
    structures: list[Judged]
    sites: list[Judged]
    left_out: bool
    ticks: list[str]
    curves: Curves

    @property
    def by_side(self) -> dict[str, list[Judged]]:
        """Rows of each side: the base, then the highest mean first, prompts from the truth last."""
        rows: dict[str, list[Judged]] = defaultdict(list)
        for item in self.sides:
            rows[item.row.modality].append(item)

        def place(item: Judged) -> tuple[bool, bool, float]:
            return item.row.method != self.base, item.row.is_oracle, -(item.row.mean or 0.0)

        return {side: sorted(of_side, key=place) for side, of_side in rows.items()}

    @property
    def parts(self) -> dict[str, list[Judged]]:
        return {"side": self.sides, "data set": self.datasets, "structure": self.structures, "site": self.sites}


def study_transfer(found: Finished, base: str | None, reference: str | None, seed: int = 0) -> Transfer:
    """Judge all runs. The base is the strategy without training, the reference the base unless it is named; UserError
    for names that are not there, and where several strategies could be the base."""
    runs = _judged_runs(found)
    names = list(dict.fromkeys(run.strategy for run in runs))
    base = _known(base, names, "--base") or _base_of(found, runs)
    reference = _known(reference, names, "--reference") or base
    scores = Scores.of(runs)
    _check_splits(scores.records)

    def side(record: Record) -> str:
        return side_of(record, found)

    sides = judge(scores, base, reference, side, structures=False, seed=seed)
    adapting = _adapting(sides, base, found)
    sited = _sited(scores, found)
    ticks, curves = learning_curves(found, base, seed)
    return Transfer(
        scores,
        base,
        reference,
        max(adapting.values(), key=lambda rows: rows[0].n)[0].method if adapting else base,
        adapting,
        seed,
        sides,
        judge(scores, base, reference, dataset_of, structures=False, seed=seed),
        judge(scores, base, reference, dataset_of, structures=True, seed=seed),
        judge(sited, base, reference, site_of, structures=False, seed=seed) if sited.records else [],
        _left_out(sited.runs),
        ticks,
        curves,
    )


def _judged_runs(found: Finished) -> list[FinishedRun]:
    """The runs on all patients; where nothing was trained on all, those on the most."""
    runs = [run for run in found.runs if run.patients is None]
    if not any(run.cost is not None for run in runs) and any(run.patients for run in found.runs):
        most = max(run.patients or 0 for run in found.runs)
        runs = [run for run in found.runs if run.patients in (None, most)]
    return runs


def _known(name: str | None, names: Sequence[str], option: str) -> str | None:
    if name is not None and name not in names:
        raise UserError(f"{option} {name}: has no scores here; choose one of {', '.join(names)}")
    return name


def _base_of(found: Finished, runs: Sequence[FinishedRun]) -> str:
    """The comparisons' base as it is, else the first method of the evaluation, whatever the order of the folders."""
    plain = {run.strategy for run in runs if run.seed is None and run.cost is None} - found.scratch
    for known in (found.untrained, found.first_evaluated, plain):
        names = sorted(known & plain)
        if len(names) == 1:
            return names[0]
        if names:
            raise UserError(
                f"{', '.join(names)}: each of them could be what changes are counted from; name one with --base"
            )
    names = sorted({run.strategy for run in runs})
    raise UserError(
        "the base without training has no scores; finish `adaptmedseg compare`, or name what changes are counted from "
        f"with --base: {', '.join(names)}"
    )


def _check_splits(records: Sequence[Record]) -> None:
    splits = sorted({record.split for record in records})
    if len(splits) > 1:
        raise UserError(f"the scores mix the splits {', '.join(splits)}; judge evaluations of one split together")


def _adapting(sides: Sequence[Judged], base: str, found: Finished) -> dict[str, list[Row]]:
    """Rows by side of new data, the highest mean first: those of the base, of models from scratch and of oracle prompts
    do not compete."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in (item.row for item in sides):
        adapts = row.method not in {base, *found.scratch, *found.untrained}
        if adapts and row.modality.endswith(NEW) and row.mean is not None and not row.is_oracle:
            rows[row.modality].append(row)
    return {side: sorted(of_side, key=lambda row: -(row.mean or 0.0)) for side, of_side in rows.items()}


def site_of(record: Record) -> str:
    """The site that a record names, or an empty word."""
    return str(record.extra.get("site") or "")


def _sited(scores: Scores, found: Finished) -> Scores:
    """Scores on new data with a site; none where fewer than two sites are known."""

    def kept(records: Sequence[Record]) -> list[Record]:
        return [record for record in on_new(records, found) if site_of(record)]

    records = kept(scores.records)
    if len({site_of(record) for record in records}) < 2:
        return Scores([], [])
    return Scores([replace(run, records=kept(run.records)) for run in scores.runs], records)


def _left_out(runs: Sequence[FinishedRun]) -> bool:
    """Whether every fold is one site, and every site one fold."""
    pairs = {(run.fold, site_of(record)) for run in runs for record in run.records}
    folds, sites = {fold for fold, _ in pairs}, {site for _, site in pairs}
    return bool(pairs) and None not in folds and len(pairs) == len(folds) == len(sites)
