"""What a table of means leaves out: cases that a method has no score of, empty structures, values that are no numbers.

A mean over the cases that happen to be there flatters a method that failed on the hard ones, so each gap is counted.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaptmedseg.evaluation.page import ReportTable
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.wording import count

SHOWN = 5
HEADER = ("Method", "Data", "Scores", "Cases missing", "Truth empty", "Both empty", "No number")


@dataclass(frozen=True)
class Gaps:
    """Of one method on one data set: how many scores there are, which cases have none (though others were scored there,
    or were asked for), how many scores are of a structure that the truth lacks, how many of these have no mask either
    and so no Dice, and which cases hold a value that is no number."""

    method: str
    dataset: str
    scores: int
    missing: list[str]
    truth_empty: int
    both_empty: int
    not_numbers: list[str]

    @property
    def worth_telling(self) -> bool:
        return bool(self.missing or self.truth_empty or self.both_empty or self.not_numbers)


def find_gaps(records: Sequence[Record], asked: Mapping[str, Sequence[str]]) -> list[Gaps]:
    """Gaps of every method on every data set that it has scores of. `asked` are ids of cases by data set, as far as
    they are known; a case that another method has a score of was asked for too."""
    expected: dict[str, dict[str, None]] = defaultdict(dict)
    for dataset, cases in asked.items():
        expected[dataset] = dict.fromkeys(cases)
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        expected[record.dataset].setdefault(record.case)
        groups[record.method, record.dataset].append(record)
    return [_gaps(*key, group, list(expected[key[1]])) for key, group in groups.items()]


def _gaps(method: str, dataset: str, records: Sequence[Record], expected: Sequence[str]) -> Gaps:
    there = {record.case for record in records}
    return Gaps(
        method,
        dataset,
        len(records),
        [case for case in expected if case not in there],
        sum(record.truth_volume_ml == 0 for record in records),
        sum(record.dice is None and not record.not_numbers for record in records),
        list(dict.fromkeys(record.case for record in records if record.not_numbers)),
    )


def gap_sentences(gaps: Sequence[Gaps]) -> list[str]:
    """What must be said at a report's head: cases without a score, and values that are no numbers."""
    told = []
    for gap in gaps:
        if gap.missing:
            told.append(f"{gap.method} has no score of {count(len(gap.missing), 'case')} of {gap.dataset}: "
                        f"{_some(gap.missing)}.")  # fmt: skip
        if gap.not_numbers:
            told.append(f"{gap.method} holds no numbers (NaN) for {count(len(gap.not_numbers), 'case')} of "
                        f"{gap.dataset}, which no mean holds: {_some(gap.not_numbers)}.")  # fmt: skip
    return told


def gap_tables(gaps: Sequence[Gaps]) -> list[ReportTable]:
    """One table of the methods and data sets that have gaps; none where there are no gaps."""
    rows = [
        [gap.method, gap.dataset, str(gap.scores), str(len(gap.missing)), str(gap.truth_empty), str(gap.both_empty),
         str(len(gap.not_numbers))]
        for gap in gaps
        if gap.worth_telling
    ]  # fmt: skip
    note = (
        "Missing: cases that were asked for and have no score. Where truth and mask are both empty there is no Dice; "
        "where the truth alone is empty Dice is 0."
    )
    return [ReportTable("What the means leave out", HEADER, rows, note, texts=2)] if rows else []


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
