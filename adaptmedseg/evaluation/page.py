"""A page of tables and figures in the report's style: one self-contained HTML file, the same as Markdown."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from adaptmedseg.data.files import write_atomic
from adaptmedseg.evaluation import style, wording


@dataclass(frozen=True)
class ReportTable:
    """A table of words with a note below it; all columns but the first `texts` hold numbers. A `folded` one is opened
    by a click (in print it is open)."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    texts: int = 1
    folded: bool = False


@dataclass(frozen=True)
class PageFigure:
    """A figure (SVG) with a heading; `file` is its name without suffix, `alt` says in words what it shows."""

    title: str
    file: str
    svg: str
    alt: str

    @property
    def uri(self) -> str:
        return style.data_uri(self.svg, "image/svg+xml")


@dataclass(frozen=True)
class Page:
    """What the page shows: its head's sentences, the most important first, then what to keep in mind, figures and
    tables."""

    title: str
    sentences: Sequence[str]
    caveats: Sequence[str] = ()
    figures: Sequence[PageFigure] = ()
    tables: Sequence[ReportTable] = ()


def environment(html: bool) -> Environment:
    """Templates of this package, with its ways of writing numbers as filters."""
    found = Environment(
        loader=PackageLoader("adaptmedseg.evaluation"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in (
        wording.score, wording.interval, wording.change, wording.change_interval, wording.origin, wording.count,
        wording.duration, wording.volume, wording.effect,
    ):  # fmt: skip
        found.filters[function.__name__] = function
    found.filters["cell"] = _markdown_cell
    return found


def _markdown_cell(text: str) -> str:
    """`text` as a cell of a Markdown table: no line breaks, no bars, no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def write_page(out_dir: Path, stem: str, page: Page) -> Path:
    """Write `STEM.html`, `STEM.md` and the figures in `STEM_files/`, in the place of earlier ones; gives the HTML."""
    files = out_dir / f"{stem}_files"
    partial = files.with_name(files.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for figure in page.figures:
        write_atomic(partial / f"{figure.file}.svg", figure.svg)
    shutil.rmtree(files, ignore_errors=True)
    partial.replace(files)
    for html, suffix in ((False, "md"), (True, "html")):
        text = environment(html).get_template(f"page.{suffix}.j2").render(page=page, files=files.name)
        write_atomic(out_dir / f"{stem}.{suffix}", text)
    return out_dir / f"{stem}.html"
