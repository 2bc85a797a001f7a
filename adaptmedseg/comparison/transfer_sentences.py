"""A transfer study in sentences: who is best on new data, against training from scratch, who forgets, and what to keep
in mind."""

from adaptmedseg.comparison.finished import Finished
from adaptmedseg.comparison.pairing import curve_notes, pairing_notes, seed_notes
from adaptmedseg.comparison.sides import NEW, OLD, in_words, side_notes, side_of
from adaptmedseg.comparison.transfer import Transfer
from adaptmedseg.evaluation import wording
from adaptmedseg.evaluation.tables import ALL_STRUCTURES, Row, paired_differences


def sentences(study: Transfer, found: Finished) -> list[str]:
    """The head of the page."""
    told = [_highest(side, rows) for side, rows in study.adapting.items()]
    if not told:
        told = ["No strategy that adapts the base has scores on data that are new to it."]
    told += [
        _against_scratch(study, found, side, rows, name)
        for side, rows in study.adapting.items()
        for name in sorted(found.scratch)
    ]
    return [sentence for sentence in (*told, *_forgetting(study, found)) if sentence]


def caveats(study: Transfer, found: Finished) -> list[str]:
    """What is missing, guessed or thin."""
    records = study.scores.records
    told = [*found.problems, *side_notes(records, found)]
    told += pairing_notes(study, found)
    told += seed_notes(study.scores.runs)
    told += curve_notes(found)
    told += _stages(study, found)
    seeds = max((item.seeds for item in study.sides), default=0)
    if 0 < seeds < 3:
        spread = "there is no deviation over seeds" if seeds == 1 else "the deviation over seeds is a rough guess"
        told.append(
            f"With {wording.count(seeds, 'seed')} {spread}; the tests compare the models trained here, not the methods "
            "in general."
        )
    patients = max((item.row.patients for item in study.sides), default=0)
    if patients < 10:
        told.append(f"The tests rest on {wording.count(patients, 'patient')} at most.")
    return told


def _stages(study: Transfer, found: Finished) -> list[str]:
    """Which number of patients the tables stand for, where it is not all, and who was not trained on it."""
    judged = {run.patients for run in study.scores.runs if run.cost is not None and run.patients is not None}
    told = [
        f"The scores are of trainings on {wording.count(patients, 'patient')} of each data set, the most there are."
        for patients in judged
    ]
    if not judged and any(run.patients is not None for run in found.runs if run.cost is not None):
        told = ["The scores are of trainings on all patients; those on fewer are in the learning curves alone."]
    names = {run.strategy for run in study.scores.runs}
    fewer = [name for name in found.strategies if name not in names]
    if fewer:
        told.append(f"Trained on fewer patients than the rest, and in no table of scores: {wording.listing(fewer)}.")
    return told


def _data(side: str) -> str:
    return f"On {side.removesuffix(f', {NEW}')} data that are new to the base"


def _highest(side: str, rows: list[Row]) -> str:
    """The strategy with the highest mean of those that adapt the base; where it is the only one, its mean."""
    row = rows[0]
    number = len({row.method for row in rows})
    mean = (
        f"{wording.score(row.mean)} ({wording.interval_95(row.interval)}; {wording.count(row.n, 'case')} of "
        f"{wording.count(row.patients, 'patient')})"
    )
    if number == 1:
        return f"{_data(side)}, {row.method}, the only strategy here that adapts the base, has a mean Dice of {mean}."
    counts = {other.n for other in rows}
    uneven = f" The means are over {min(counts)} to {max(counts)} cases." if len(counts) > 1 else ""
    return (
        f"{_data(side)}, {row.method} has the highest mean Dice of the {number} strategies that adapt the base: {mean}."
        f"{uneven}"
    )


def _against_scratch(study: Transfer, found: Finished, side: str, rows: list[Row], scratch: str) -> str:
    """The best of one side against a model from scratch, over the cases of that side that both have."""
    best = rows[0]
    records = [record for record in study.scores.records if side_of(record, found) == side]
    pairs = paired_differences(records, scratch, best.method, group=lambda _record: side, seed=study.seed)
    pair = next(
        (
            pair
            for pair in pairs
            if pair.structure == ALL_STRUCTURES and pair.adapted_origin == best.prompt_origin and not pair.is_oracle
        ),
        None,
    )
    if pair is None:
        return ""
    others = len({row.method for row in rows})
    choice = f", not corrected for the choice among {others} strategies" if others > 1 else ""
    return (
        f"{_data(side)}, {best.method} differs from {scratch}, trained from scratch, by "
        f"{wording.change(pair.difference)} ({wording.change_95(pair.interval)}; paired over the "
        f"{wording.count(pair.n, 'case')} both have, {pair.better} better, {pair.worse} worse; Wilcoxon's p over "
        f"{wording.count(pair.patients, 'patient')} {wording.p_value(pair.p)}{choice})."
    )


def _forgetting(study: Transfer, found: Finished) -> list[str]:
    """Who keeps the base's scores on old data, and who loses most of them; what never had them can do neither."""
    old = [
        (item.row, item.change)
        for item in study.sides
        if item.row.modality.endswith(OLD) and item.change is not None and not item.row.is_oracle
        and item.row.method not in found.scratch
    ]  # fmt: skip
    changed = {row.method for row, change in old if change.better + change.worse}
    kept = [name for name in dict.fromkeys(row.method for row, _ in old) if name not in changed]
    told = []
    if kept:
        told.append(f"The same score as {study.base} on every old case that both have: {wording.listing(kept)}.")
    worst = min(old, key=lambda pair: pair[1].difference, default=None)
    if worst is not None and worst[1].difference < 0:
        row, change = worst
        told.append(
            f"Most is forgotten by {row.method}: {wording.change(change.difference)} on {in_words(row.modality)} data "
            f"({wording.change_95(change.interval)}; paired over the {wording.count(change.n, 'case')} both have)."
        )
    return told
