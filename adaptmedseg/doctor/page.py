"""The check as one HTML page without scripts: what was found, worst case first, with a picture of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from adaptmedseg.data.check_result import CaseCheck, CheckReport
from adaptmedseg.data.files import write_atomic
from adaptmedseg.doctor.advice import Advice
from adaptmedseg.evaluation.style import data_uri


@dataclass(frozen=True)
class _Shown:
    case: CaseCheck
    state: str
    picture: str | None


def write_page(
    path: Path,
    title: str,
    report: CheckReport,
    advice: Advice | None,
    cost: Sequence[str],
    pictures: Mapping[str, bytes],
    colours: Mapping[str, tuple[int, ...]],
) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        title: the folder's name.
        report: of the check.
        advice: what it means for a model, where a case could be read.
        cost: sentences on time and memory.
        pictures: case id to PNG.
        colours: structure to RGB, as in the pictures.
    """
    environment = Environment(
        loader=PackageLoader("adaptmedseg.doctor"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ordered = sorted(report.cases, key=lambda case: (*(-n for n in case.severity), case.id))
    shown = [
        _Shown(
            case,
            "error" if case.errors else "warning" if case.warnings else "good",
            data_uri(pictures[case.id], "image/png") if case.id in pictures else None,
        )
        for case in ordered
    ]
    often = Counter(text for case in report.cases for text in case.short_warnings)
    text = environment.get_template("check.html.j2").render(
        title=title, report=report, advice=advice, cost=cost, cases=shown,
        often=[(text, count) for text, count in often.most_common() if count > 1],
        colours={name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in colours.items()},
        states={state: sum(case.state == state for case in shown) for state in ("error", "warning", "good")},
    )  # fmt: skip
    write_atomic(path, text)
