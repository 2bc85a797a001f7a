"""The rows of a training as files that grow with it: CSV for tables, one JSON object a line for programs."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptmedseg.data.files import write_atomic
from adaptmedseg.training.observer import Observer

CSV, JSON = "log.csv", "log.jsonl"
COLUMNS = ("step", "minutes", "loss", "lr", "samples_per_second", "val_dice")
Row = dict[str, float]


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON file; a last line that a crash cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def to_csv(rows: list[Row]) -> str:
    """Rows as a table: the usual columns first, further ones by name, and an empty cell for what a row lacks."""
    columns = columns_of(rows)
    return _lines([dict(zip(columns, columns, strict=True)), *rows], columns)


def columns_of(rows: list[Row]) -> list[str]:
    more = sorted({key for row in rows for key in row} - set(COLUMNS))
    return [key for key in COLUMNS if any(key in row for row in rows)] + more


def _lines(rows: Sequence[Mapping[str, object]], columns: list[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()


class Throughput:
    """Adds to each row the samples a second since the one before, by the clock of the budget."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.step = self.minutes = 0.0

    def __call__(self, row: Row) -> Row:
        steps, seconds = row["step"] - self.step, 60 * (row["minutes"] - self.minutes)
        self.step, self.minutes = row["step"], row["minutes"]
        return row | {"samples_per_second": steps * self.batch_size / seconds} if seconds > 0 else row


class RowFiles(Observer):
    """Writes every row to both files in a folder. Going on, rows after the checkpoint are cut from them."""

    def __init__(self, folder: Path, batch_size: int):
        self.folder = folder
        self.rows: list[Row] = []
        self.columns: list[str] = []
        self.throughput = Throughput(batch_size)

    def started(self, step: int) -> None:
        self.rows = [row for row in read_rows(self.folder / JSON) if row["step"] <= step]
        if self.rows:
            self.throughput(self.rows[-1])
        self._write()

    def logged(self, done: float, row: Row) -> None:
        row = self.throughput(row)
        self.rows.append(row)
        if set(row) - set(self.columns):
            return self._write()
        for name, text in ((JSON, _line(row)), (CSV, _lines([row], self.columns))):
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(text)
        return None

    def _write(self) -> None:
        self.columns = columns_of(self.rows)
        write_atomic(self.folder / JSON, "".join(map(_line, self.rows)))
        write_atomic(self.folder / CSV, to_csv(self.rows) if self.rows else "")


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
