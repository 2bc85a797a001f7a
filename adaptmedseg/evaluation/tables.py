"""Tables of scores: means with intervals per modality, structure, method and prompt origin, and paired differences.

The prompt origin is part of every row's key, so a score with an oracle prompt is never averaged with one without.
"""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from adaptmedseg.evaluation.bootstrap import bootstrap_interval
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.significance import paired_p, patient_means, rank_biserial
from adaptmedseg.inference.prompt_origin import is_oracle, question_of

ALL_STRUCTURES = "all structures"


@dataclass(frozen=True)
class Row:
    """Mean Dice (or another measure) of one method with one prompt origin on one structure of one modality.

    `n` counts scored cases, `unscored` those without a value, for Dice with an empty truth and an empty prediction.
    In the rows for "all structures" the value of a case is the mean over its scored structures. `interval` is the 95 %
    bootstrap interval over patients, None with fewer than three of them; `mean` is None when nothing was scored.
    """

    modality: str
    structure: str
    method: str
    prompt_origin: str
    n: int
    patients: int
    unscored: int
    mean: float | None
    sd: float | None
    interval: tuple[float, float] | None

    @property
    def is_oracle(self) -> bool:
        return is_oracle(self.prompt_origin)


@dataclass(frozen=True)
class PairedRow:
    """Difference `adapted - base` of Dice over the cases that both methods scored, paired by case and structure.

    `p` is that of Wilcoxon's signed-rank test over patients, not corrected for other rows, `effect` its rank-biserial
    correlation.
    """

    modality: str
    structure: str
    base: str
    adapted: str
    base_origin: str
    adapted_origin: str
    n: int
    patients: int
    base_mean: float
    adapted_mean: float
    difference: float
    interval: tuple[float, float] | None
    better: int
    worse: int
    p: float | None = None
    effect: float | None = None

    @property
    def is_oracle(self) -> bool:
        return is_oracle(self.base_origin) or is_oracle(self.adapted_origin)


@dataclass(frozen=True)
class _Value:
    patient: tuple[str, str]
    first: float
    second: float = 0.0


def check_records(records: Sequence[Record]) -> None:
    """Raise ValueError for records that can't stand in one table: several splits, or one score twice."""
    splits = sorted({record.split for record in records})
    if len(splits) > 1:
        raise ValueError(f"the records mix the splits {', '.join(splits)}; a table holds one split only")
    keys = Counter((r.method, r.prompt_origin, *r.case_key, r.structure, r.fold) for r in records)
    twice = [key for key, count in keys.items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} scores are there twice, first: {twice[0]}")


def by_modality(record: Record) -> str:
    """How tables group records unless told otherwise."""
    return record.modality


def dice_of(record: Record) -> float | None:
    """What tables average unless told otherwise."""
    return record.dice


def aggregate(
    records: Sequence[Record],
    method_order: Sequence[str] = (),
    seed: int = 0,
    value: Callable[[Record], float | None] = dice_of,
    group: Callable[[Record], str] = by_modality,
) -> list[Row]:
    """Rows per modality × structure × method × prompt origin, then "all structures" of each modality, of `value`.

    `group` may name other groups than modalities, such as data sets or sites; the rows hold them in `modality`.
    Modalities and structures keep the order in which the records name them, methods that of `method_order` (the rest
    follow); prompts follow the alphabet, and count (5 clicks before 10), oracle ones last. Every row draws from its own
    generator with `seed`, so no row depends on the others.
    """
    check_records(records)
    structures = _structures_by_group(records, group)
    groups: dict[tuple[str, str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        for structure in (record.structure, ALL_STRUCTURES):
            groups[group(record), structure, record.method, record.prompt_origin].append(record)
    methods = list(dict.fromkeys([*method_order, *(record.method for record in records)]))
    modalities = list(structures)

    def position(key: tuple[str, str, str, str]) -> tuple[int, int, int, bool, list[str | int]]:
        modality, structure, method, origin = key
        place = (structures[modality] + [ALL_STRUCTURES]).index(structure)
        return modalities.index(modality), place, methods.index(method), is_oracle(origin), _counting(origin)

    return [_row(key, groups[key], seed, value) for key in sorted(groups, key=position)]


def _counting(text: str) -> list[str | int]:
    """A key that sorts by the alphabet, and by size where there are numbers: words and numbers take turns."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", text)]


def _structures_by_group(records: Sequence[Record], group: Callable[[Record], str]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for record in records:
        found.setdefault(group(record), {})[record.structure] = None
    return {modality: list(structures) for modality, structures in found.items()}


def _row(
    key: tuple[str, str, str, str], group: list[Record], seed: int, value: Callable[[Record], float | None]
) -> Row:
    by_case: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for record in group:
        by_case[(*record.case_key, record.fold)].append(record)
    values: list[float] = []
    patients: list[tuple[str, str]] = []
    for of_case in by_case.values():
        scores = [score for record in of_case if (score := value(record)) is not None]
        if scores:
            values.append(float(np.mean(scores)))
            patients.append(of_case[0].patient_key)
    return Row(
        *key,
        n=len(values),
        patients=len(set(patients)),
        unscored=len(by_case) - len(values),
        mean=float(np.mean(values)) if values else None,
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        interval=bootstrap_interval(values, patients, np.random.default_rng(seed)),
    )


def _pair_origins(records: Sequence[Record], base: str, adapted: str) -> list[tuple[str, str]]:
    """Which prompt origins may be compared: those that asked the same, and the only questions of each that are no
    oracle's."""
    first = list(dict.fromkeys(r.prompt_origin for r in records if r.method == base))
    second = list(dict.fromkeys(r.prompt_origin for r in records if r.method == adapted))
    pairs = [(a, b) for a in first for b in second if question_of(a) == question_of(b)]
    first = [origin for origin in first if not is_oracle(origin)]
    second = [origin for origin in second if not is_oracle(origin)]
    asked = [{question_of(origin) for origin in origins} for origins in (first, second)]
    if len(asked[0]) == len(asked[1]) == 1 and asked[0] != asked[1]:
        pairs = [(a, b) for a in first for b in second] + pairs
    return pairs


def paired_differences(
    records: Sequence[Record],
    base: str,
    adapted: str,
    *,
    group: Callable[[Record], str] = by_modality,
    seed: int = 0,
) -> list[PairedRow]:
    """Paired differences per modality (or per `group` of records) and structure, then over all its structures.

    Only cases and structures that both methods scored count. Prompts are compared like with like (a name is a name,
    whether or not the model has a token for it); where each method was asked in just one way that is no oracle's, these
    are compared too and both are named in the row. An oracle prompt is only ever compared with itself. No row is
    returned where there is nothing to compare.
    """
    check_records(records)
    rows: list[PairedRow] = []
    for base_origin, adapted_origin in _pair_origins(records, base, adapted):
        firsts = _scores(records, base, base_origin)
        seconds = _scores(records, adapted, adapted_origin)
        groups: dict[tuple[str, str], dict[tuple[object, ...], list[_Value]]] = defaultdict(lambda: defaultdict(list))
        shared = [(record, seconds[key]) for key, record in firsts.items() if key in seconds]
        for structure in (*dict.fromkeys(record.structure for record, _ in shared), ALL_STRUCTURES):
            for first, second in shared:
                if structure not in (first.structure, ALL_STRUCTURES):
                    continue
                if first.dice is not None and second.dice is not None:
                    value = _Value(first.patient_key, first.dice, second.dice)
                    groups[group(first), structure][*first.case_key, first.fold].append(value)
        for modality in dict.fromkeys(group(record) for record, _ in shared):
            for key, cases in groups.items():
                if key[0] == modality:
                    rows.append(_paired_row(key, (base, adapted, base_origin, adapted_origin), cases, seed))
    return rows


def _scores(records: Sequence[Record], method: str, origin: str) -> dict[tuple[object, ...], Record]:
    chosen = [r for r in records if r.method == method and r.prompt_origin == origin]
    return {(*r.case_key, r.structure, r.fold): r for r in chosen}


def _paired_row(
    key: tuple[str, str],
    names: tuple[str, str, str, str],
    cases: dict[tuple[object, ...], list[_Value]],
    seed: int,
) -> PairedRow:
    firsts = [float(np.mean([value.first for value in values])) for values in cases.values()]
    seconds = [float(np.mean([value.second for value in values])) for values in cases.values()]
    patients = [values[0].patient for values in cases.values()]
    differences = [second - first for first, second in zip(firsts, seconds, strict=True)]
    evidence = patient_means(differences, patients)
    return PairedRow(
        *key,
        *names,
        n=len(cases),
        patients=len(set(patients)),
        base_mean=float(np.mean(firsts)),
        adapted_mean=float(np.mean(seconds)),
        difference=float(np.mean(differences)),
        interval=bootstrap_interval(differences, patients, np.random.default_rng(seed)),
        better=sum(difference > 0 for difference in differences),
        worse=sum(difference < 0 for difference in differences),
        p=paired_p(evidence),
        effect=rank_biserial(evidence),
    )


def unequal_cases(records: Sequence[Record]) -> list[str]:
    """One sentence per modality and structure that the methods (with their prompts) saw on different cases."""
    seen: dict[tuple[str, str], dict[tuple[str, str], set[object]]] = defaultdict(lambda: defaultdict(set))
    for r in records:
        seen[r.modality, r.structure][r.method, r.prompt_origin].add((*r.case_key, r.fold))
    sentences: list[str] = []
    for (modality, structure), by_method in seen.items():
        if len({frozenset(cases) for cases in by_method.values()}) > 1:
            counts = ", ".join(f"{method} ({origin}) {len(cases)}" for (method, origin), cases in by_method.items())
            sentences.append(f"{modality}, {structure}: the methods saw different cases ({counts}).")
    return sentences


def table_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV; empty cells where there is no mean, deviation or interval."""
    text = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        flat = asdict(row)
        low, high = flat.pop("interval") or (None, None)
        flat |= {"low": low, "high": high, "oracle": row.is_oracle}
        if writer is None:
            writer = csv.DictWriter(text, list(flat), lineterminator="\n")
            writer.writeheader()
        writer.writerow(flat)
    return text.getvalue()
