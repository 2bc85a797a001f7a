"""The verdict: what the adaptation gained on MRI and cost on CT, in plain sentences computed from the scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adaptmedseg.data.registry import modality
from adaptmedseg.evaluation.records import Record
from adaptmedseg.evaluation.tables import ALL_STRUCTURES, PairedRow, paired_differences
from adaptmedseg.evaluation.wording import change, change_95, count, listing, origin, score


@dataclass(frozen=True)
class Goals:
    """What counts as success: a mean MRI gain of at least `mr_gain`, a mean CT loss of at most `ct_loss` (in Dice)."""

    mr_gain: float = 0.0
    ct_loss: float = 0.01


@dataclass(frozen=True)
class GateCheck:
    """The modality gate, which switches the adapter off for CT, and how many CT cases were compared voxel for voxel."""

    on: bool
    compared: int = 0
    identical: int = 0


def registered_family(name: str) -> str:
    """'CT' or 'MR' for a modality of the registry; raises UserError for one that it lacks."""
    return modality(name).family


def verdict(
    records: Sequence[Record],
    *,
    base: str = "base",
    adapted: str = "adapted",
    labels: Mapping[str, str] | None = None,
    gate: GateCheck | None = None,
    goals: Goals | None = None,
    family: Callable[[str], str] = registered_family,
    seed: int = 0,
) -> list[str]:
    """Sentences for the head of the report, the most important first.

    `base` and `adapted` name methods of the records, `labels` how to call them, `family` gives 'CT' or 'MR' for a
    modality. A goal that isn't reached, a difference that could be chance and a missing comparison are said plainly.
    """
    goals = goals or Goals()
    names = {base: base, adapted: adapted} | dict(labels or {})
    rows = paired_differences(records, base, adapted, group=lambda record: family(record.modality), seed=seed)
    rows = [row for row in rows if row.structure == ALL_STRUCTURES]
    sentences: list[str] = []
    for wanted, judge in (("MR", _judge_mr), ("CT", _judge_ct)):
        found = [row for row in rows if row.modality == wanted]
        shown = "MRI" if wanted == "MR" else "CT"
        for row in found:
            sentences += [_difference(row, shown, names), judge(row, goals)]
        if not found:
            sentences.append(_no_comparison(records, wanted, shown, base, adapted, family))
    sentences += _gate(gate, [row for row in rows if row.modality == "CT"])
    return [sentence for sentence in sentences if sentence]


def _difference(row: PairedRow, shown: str, names: Mapping[str, str]) -> str:
    prompts = origin(row.base_origin)
    if row.base_origin != row.adapted_origin:
        prompts = f"{origin(row.base_origin)} against {origin(row.adapted_origin)}"
    where = count(row.n, "case") + ("" if row.n == row.patients else f" of {count(row.patients, 'patient')}")
    base, adapted = names[row.base], names[row.adapted]
    if row.better == row.worse == 0:
        return (
            f"On {shown}, {adapted} scores the same as {base} on every case (mean Dice {score(row.base_mean)}; "
            f"{where}; prompt: {prompts})."
        )
    verb = "raises" if row.difference > 0 else "lowers"
    return (
        f"On {shown}, {adapted} {verb} mean Dice from {score(row.base_mean)} ({base}) to {score(row.adapted_mean)}: "
        f"{change(row.difference)} ({change_95(row.interval)}; {where}, {row.better} better, {row.worse} worse; "
        f"prompt: {prompts})."
    )


def _judge_mr(row: PairedRow, goals: Goals) -> str:
    goal = "any gain" if goals.mr_gain == 0 else f"a gain of at least {change(goals.mr_gain)}"
    if row.difference < goals.mr_gain or row.difference <= 0:
        return f"The goal on MRI ({goal}) is not reached."
    if row.interval is None:
        return (
            f"The mean meets the goal on MRI ({goal}), but {count(row.patients, 'patient')} can't show that it holds."
        )
    if row.interval[0] <= 0:
        return f"The mean meets the goal on MRI ({goal}), but the interval includes no gain: this could be chance."
    return f"The goal on MRI ({goal}) is reached."


def _judge_ct(row: PairedRow, goals: Goals) -> str:
    goal = f"a loss of at most {goals.ct_loss:.3f}"
    if row.difference < -goals.ct_loss:
        return f"The goal on CT ({goal}) is not reached: the adaptation costs accuracy there."
    if row.better == row.worse == 0:
        return ""
    if row.interval is None:
        return f"The mean meets the goal on CT ({goal}), but {count(row.patients, 'patient')} can't show it."
    if row.interval[0] < -goals.ct_loss:
        return f"The mean meets the goal on CT ({goal}), but the interval doesn't exclude a larger loss."
    return f"The goal on CT ({goal}) is reached."


def _no_comparison(
    records: Sequence[Record], wanted: str, shown: str, base: str, adapted: str, family: Callable[[str], str]
) -> str:
    methods = {record.method for record in records if family(record.modality) == wanted}
    missing = [method for method in (base, adapted) if method not in methods]
    if missing:
        return f"Nothing is claimed for {shown}: there are no {shown} scores for {listing(missing)}."
    return f"Nothing is claimed for {shown}: the two methods share no scored case with comparable prompts."


def _gate(gate: GateCheck | None, ct_rows: Sequence[PairedRow]) -> list[str]:
    if gate is None:
        return []
    if not gate.on:
        return [
            "The modality gate is off: the adapter also works on CT, so CT output may differ from the base model's."
        ]
    text = "The modality gate is on: for CT the adapter is switched off, so the output is the base model's, bit for bit"
    differing = sum(row.better + row.worse for row in ct_rows if row.base_origin == row.adapted_origin)
    if gate.identical < gate.compared or differing:
        found = (
            f"{gate.compared - gate.identical} of {count(gate.compared, 'compared CT case')} and {differing} CT scores"
        )
        return [f"The modality gate is on, but CT output is not the base model's: {found} differ. This is a fault."]
    checked = f"checked on {count(gate.compared, 'CT case')}" if gate.compared else "not checked in this run"
    return [f"{text} ({checked})."]
