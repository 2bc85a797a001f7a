"""One score of one method on one structure of one case, and the file of such scores (`results.jsonl`)."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from adaptmedseg.data.files import write_atomic
from adaptmedseg.errors import UserError
from adaptmedseg.inference.prompt_origin import check_origin, is_oracle

NOT_NUMBERS = "not_numbers"
TEXTS = ("method", "dataset", "modality", "case", "patient", "structure", "prompt_origin", "split")
NUMBERS = (
    "dice", "volume_ml", "truth_volume_ml", "jaccard", "hd95_mm", "assd_mm", "asd_mm", "nsd", "nsd_tolerance_mm",
    "volume_error_ml", "absolute_volume_error_ml", "relative_volume_error", "lesion_precision", "lesion_recall",
    "lesion_f1",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One line of `results.jsonl`.

    `dice` is None where truth and prediction are both empty (not scored, but counted). `prompt_origin` says where the
    prompt came from, as in `inference.prompt_origin`; an 'oracle' prompt was made from the ground truth. Further
    measures (`metrics.MaskMeasures.as_dict`) go into `extra` and become further keys of the line. A number in a file
    that is none (NaN, infinity) is read as None and named in `extra` under NOT_NUMBERS; volumes are None in that case
    alone.
    """

    method: str
    dataset: str
    modality: str
    case: str
    patient: str
    structure: str
    prompt_origin: str
    dice: float | None
    volume_ml: float | None
    truth_volume_ml: float | None
    split: str = "test"
    fold: int | None = None
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_origin(self.prompt_origin)
        if self.dice is not None and not 0 <= self.dice <= 1:
            raise ValueError(f"dice: {self.dice} lies outside 0..1")
        for name in ("volume_ml", "truth_volume_ml"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: {value} is no volume")

    @property
    def not_numbers(self) -> list[str]:
        """Keys whose values in the file were no numbers."""
        return list(self.extra.get(NOT_NUMBERS, ()))

    @property
    def is_oracle(self) -> bool:
        """Whether the prompt was made from the ground truth, so that the score is no score of the product."""
        return is_oracle(self.prompt_origin)

    @property
    def case_key(self) -> tuple[str, str, str]:
        """Case names are unique within one modality of one data set only."""
        return self.dataset, self.modality, self.case

    @property
    def score_key(self) -> tuple[object, ...]:
        """What is one score: a second one with this key replaces the first."""
        return self.method, self.prompt_origin, self.case_key, self.structure, self.fold

    @property
    def patient_key(self) -> tuple[str, str]:
        """Patient names are unique within a data set only."""
        return self.dataset, self.patient


FIELD_NAMES = tuple(f.name for f in fields(Record) if f.name != "extra")


def _to_dict(record: Record) -> dict[str, Any]:
    flat: dict[str, Any] = asdict(record)
    extra: dict[str, Any] = flat.pop("extra")
    clash = set(flat) & set(extra)
    if clash:
        raise ValueError(f"extra: {sorted(clash)} are fields of the record itself")
    return flat | extra


def _check_line(line: Any) -> None:
    """ValueError, which says what is wrong, for a line whose values are not of the kinds that tables count on."""
    if not isinstance(line, dict):
        raise ValueError("the line is no JSON object")
    missing = [f.name for f in fields(Record) if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in missing if name not in line]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    for name in TEXTS:
        if not isinstance(line.get(name, ""), str):
            raise ValueError(f"{name}: {line[name]!r} is no text")
    for name in NUMBERS:
        value = line.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name}: {value!r} is no number")
    tolerance = line.get("nsd_tolerance_mm")
    if "surface_elements" in line and (tolerance is None or not math.isfinite(tolerance)):
        raise ValueError("nsd_tolerance_mm: is no number, so that nobody knows what nsd means")


def _parse(line: str) -> Record:
    try:
        parsed = json.loads(line)
    except ValueError:
        raise ValueError("the line is cut off or no JSON") from None
    _check_line(parsed)
    return _from_dict(parsed)


def _from_dict(line: dict[str, Any]) -> Record:
    wrong = [key for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
    if wrong:
        line = line | dict.fromkeys(wrong) | {NOT_NUMBERS: wrong}
    known = {name: line[name] for name in FIELD_NAMES if name in line}
    return Record(**known, extra={key: value for key, value in line.items() if key not in FIELD_NAMES})


def write_results(path: Path, records: Iterable[Record]) -> None:
    """Write `results.jsonl`, one JSON object a line, atomically."""
    lines = [json.dumps(_to_dict(record), ensure_ascii=False, allow_nan=False) for record in records]
    write_atomic(path, "".join(line + "\n" for line in lines))


def read_results(path: Path) -> list[Record]:
    """Read `results.jsonl`; raises UserError for a missing or empty file and for a line that is no record."""
    if not path.is_file():
        raise UserError(f"{path}: there is no results file here; run the evaluation first.")
    records: list[Record] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text, and so holds no results; run the evaluation again.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(_parse(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, line {number}: no result record ({error}); run the evaluation again.") from error
    if not records:
        raise UserError(f"{path}: the results file is empty; run the evaluation again.")
    return records


def read_scores(path: Path) -> list[Record]:
    """As `read_results`, of results that make one table: UserError, too, where a score is there twice or splits mix."""
    records = read_results(path)
    splits = sorted({record.split for record in records})
    if len(splits) > 1:
        raise UserError(f"{path}: mixes the splits {', '.join(splits)}; evaluate each into its own folder")
    counts = Counter(record.score_key for record in records)
    twice = next((record for record in records if counts[record.score_key] > 1), None)
    if twice is not None:
        raise UserError(
            f"{path}: {twice.method} on {twice.case}, {twice.structure} is scored twice; delete all lines of it but "
            "one, or run the evaluation again"
        )
    return records


def results_csv(records: Iterable[Record]) -> str:
    """The records as CSV, one line a record, further metrics in further columns; an empty cell is 'not scored'."""
    rows = [_to_dict(record) for record in records]
    names = list(FIELD_NAMES) + sorted({key for row in rows for key in row} - set(FIELD_NAMES))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
