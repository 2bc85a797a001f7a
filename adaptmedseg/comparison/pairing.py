"""Over which cases strategies are compared, where it is not all: what one of two has no score of falls out silently."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from adaptmedseg.comparison.finished import Finished, FinishedRun
from adaptmedseg.comparison.sides import in_words, on_new, side_of
from adaptmedseg.comparison.transfer import Transfer
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.wording import count, listing

_Scored = dict[tuple[object, ...], set[str]]  # structures by case


def pairing_notes(study: Transfer, found: Finished) -> list[str]:
    """Sentences on strategies that share fewer cases with base or reference than either has, or fewer structures, and
    on those without a score on one side."""
    sides: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in study.scores.records:
        sides[side_of(record, found)][record.method].append(record)
    methods = list(dict.fromkeys(record.method for record in study.scores.records))
    told = []
    for side, by_method in sides.items():
        scored = {name: _scored(by_method.get(name, ())) for name in methods}
        absent = [name for name in methods if all(record.dice is None for record in by_method.get(name, ()))]
        if absent:
            told.append(f"No score on {in_words(side)} data: {listing(absent)}.")
        for partner in dict.fromkeys((study.base, study.reference)):
            others = [name for name in methods if scored[name] and name != partner]
            told += _fewer(in_words(side), partner, scored[partner], {name: scored[name] for name in others})
    return told


def _scored(records: Iterable[Record]) -> _Scored:
    """Structures by case that have a Dice with a prompt of the product."""
    found: _Scored = defaultdict(set)
    for record in records:
        if record.dice is not None and not record.is_oracle:
            found[*record.case_key, record.fold].add(record.structure)
    return found


def _fewer(side: str, partner: str, own: _Scored, others: dict[str, _Scored]) -> list[str]:
    """A sentence for all that share the same number of cases or scores with `partner`."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, scored in others.items() if own else ():
        both = [case for case in own if own[case] & scored.get(case, set())]
        either = len(own.keys() | scored.keys())
        shared = sum(len(own[case] & scored[case]) for case in both)
        all_scores = sum(len(own.get(case, set()) | scored.get(case, set())) for case in own.keys() | scored.keys())
        if len(both) < either:
            groups[f"over the {count(len(both), 'case')} both have, of {either}"].append(name)
        elif shared < all_scores:
            groups[f"over the {count(shared, 'structure')} of cases that both have, of {all_scores}"].append(name)
    return [f"On {side} data, {listing(names)} and {partner} are paired {over}." for over, names in groups.items()]


def seed_notes(runs: Sequence[FinishedRun]) -> list[str]:
    """Sentences on trainings without a score that another seed of theirs has: the mean there is over fewer seeds."""
    groups: dict[tuple[object, ...], list[FinishedRun]] = defaultdict(list)
    for run in runs:
        groups[run.strategy, run.patients, run.fold].append(run)
    told = []
    for siblings in groups.values():
        scored = [set(_scored(run.records)) for run in siblings]
        every = set[tuple[object, ...]]().union(*scored)
        for run, cases in zip(siblings, scored, strict=True):
            if every - cases:
                told.append(
                    f"{run.label} has no score of {count(len(every - cases), 'case')} that another seed has; the mean "
                    "there is over the other seeds."
                )
    return told


def curve_notes(found: Finished) -> list[str]:
    """Sentences on points of learning curves that are means over fewer cases than others of the same strategy."""
    points: dict[str, dict[int | None, _Scored]] = defaultdict(lambda: defaultdict(dict))
    for run in found.runs:
        if run.cost is not None:
            points[run.strategy][run.patients] |= _scored(on_new(run.records, found))
    told = []
    for strategy, by_count in points.items():
        every = set[tuple[object, ...]]().union(*by_count.values())
        for patients, scored in by_count.items() if len(by_count) > 1 else ():
            if every - scored.keys():
                trained = "all patients" if patients is None else count(patients, "patient")
                told.append(
                    f"Learning curves: {strategy}, trained on {trained}, has a score of {len(every & scored.keys())} "
                    f"of the {count(len(every), 'case')}; its mean is over these alone."
                )
    return told
