"""`adaptmedseg adapters`: look at adapter files, compare them, and make bases of them."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from adaptmedseg.adapters.bases import base_state, merge_into_base
from adaptmedseg.adapters.card import AdapterCard
from adaptmedseg.adapters.compare import changes, compare_changes, differences
from adaptmedseg.adapters.counts import PartCount, count_parameters, kinds_of, total
from adaptmedseg.adapters.file import ADAPTER_FORMATS, read_adapter
from adaptmedseg.checkpoints.foreign import is_readable, own_format
from adaptmedseg.checkpoints.store import model_path, recorded_hash
from adaptmedseg.checkpoints.verify import verify_file
from adaptmedseg.cli.common import text_table
from adaptmedseg.errors import UserError

SHOWN = 3  # names in a cell of a table
COLUMNS = ["file", "name", "base", "is", "tasks", "modalities", "kinds", "parameters", "MB", "date"]
BASES = {"ok": "ok", "missing": "not here", "another": "has other weights"}
app = typer.Typer(
    help="Look at adapter files, compare them, make bases of them.", no_args_is_help=True, rich_markup_mode=None
)
AdapterFile = Annotated[str, typer.Argument(help="An adapter file or a run folder.")]
Base = Annotated[str | None, typer.Option(help="The adapter's base, where its file has moved.")]


@app.command("list")
def list_command(folder: Annotated[Path, typer.Argument(help="A folder; those in it are searched too.")]) -> None:
    """List the adapters in a folder; exit code 1 where a file is damaged.

    \b
    Examples:
      adaptmedseg adapters list runs
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give one, or look at a single file with `adaptmedseg adapters show`")
    files = [path for path in sorted(folder.rglob("*.safetensors")) if _is_adapter(path)]
    if not files:
        raise UserError(f"{folder}: holds no adapter file; train one, or name another folder")
    rows, damaged = [], []
    for path in files:
        try:
            rows.append([str(path.relative_to(folder)), *_row(path)])
        except UserError as error:
            damaged.append(str(error))
    if rows:
        print(text_table(COLUMNS, rows))
    for sentence in damaged:
        print(f"wrong: {sentence}")
    if damaged:
        raise typer.Exit(1)


def _is_adapter(path: Path) -> bool:
    """Adapters, and files so damaged that nothing in them says what they were."""
    return (own_format(path) or "").startswith(ADAPTER_FORMATS) or not is_readable(path)


def _row(path: Path) -> list[str]:
    card, tensors = read_adapter(path)
    counts = count_parameters(tensors)
    return [
        card.name,
        card.base,
        BASES[base_state(card)],
        _few(card.tasks),
        _few(card.modalities),
        ", ".join(kinds_of(counts)),
        f"{total(counts):,}",
        f"{path.stat().st_size / 1e6:.2f}",
        card.created,
    ]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@app.command()
def show(file: AdapterFile, base: Base = None) -> None:
    """Show what an adapter file says of itself, and check it; exit code 1 where something is wrong with it, 2 where it
    cannot be read.

    \b
    Examples:
      adaptmedseg adapters show runs/mine
      adaptmedseg adapters show mine.safetensors --base segvol.safetensors
    """
    path = _path(file)
    card, tensors = read_adapter(path)
    print(f"{path}: {card.name}, {card.created}, {path.stat().st_size / 1e6:.2f} MB")
    print("\n".join(f"{key}: {value}" for key, value in _facts(card).items()))
    counts = count_parameters(tensors)
    print(text_table(["kind", "part", "tensors", "parameters"], [_count(count) for count in counts]))
    print(f"trained parameters: {total(counts):,}")
    verdict = verify_file(path, base)
    print(f"ok: card and {len(tensors)} tensors are those that were written")
    for word, notes in (("ok", verdict.notes), ("not checked", verdict.unchecked), ("wrong", verdict.problems)):
        for note in notes:
            print(f"{word}: {note}")
    if verdict.problems:
        raise typer.Exit(1)


def _path(file: str) -> Path:
    """The adapter file behind a path or run folder. UserError for a model file of another kind."""
    path = model_path(file)
    form = own_format(path)
    if form is not None and not form.startswith(ADAPTER_FORMATS):
        raise UserError(f"{path}: holds {form}, no adapter; look at it with `adaptmedseg weights inspect`")
    return path


def _facts(card: AdapterCard) -> dict[str, str]:
    gate = f"{', '.join(card.modalities)} alone; all other images pass the base untouched"
    preprocessing = card.preprocessing
    size = "×".join(map(str, preprocessing.spatial_size))
    spacing = " × ".join(f"{value:g} mm" for value in card.spacing_mm) if card.spacing_mm else "not known"
    training = {key: value for key, value in card.training.items() if not isinstance(value, list | dict)}
    return {
        "base": f"{card.base} ({card.base_hash[:12]})",
        "tasks": ", ".join(card.tasks),
        "modalities": ", ".join(card.modalities),
        "gate": gate if card.config.gate_by_modality else "none: every image is adapted",
        "input": f"{size}, {preprocessing.resize}",
        "intensities": preprocessing.normalisation.model_dump_json(exclude_none=True),
        "median spacing (d, h, w)": spacing,
        "licence": card.licence,
        "training": ", ".join(f"{key} {value}" for key, value in training.items()) or "not stated",
        "config": json.dumps(card.config.model_dump(mode="json")),
    }


def _count(count: PartCount) -> list[str]:
    return [count.kind, count.part, str(count.tensors), f"{count.parameters:,}"]


@app.command()
def merge(
    file: AdapterFile,
    out: Annotated[Path, typer.Option(help="New base file (.safetensors).")],
    base: Base = None,
    drop_gate: Annotated[
        bool, typer.Option("--drop-gate", help="Give the gate up: the new base adapts every image, CT too.")
    ] = False,
) -> None:
    """Write a base whose weights hold the adapter: for `train --base`, `predict --model` and the rest.

    Context priors, tokens and Med-SA's bottlenecks are no change of weights; adapters with them stay adapters.

    \b
    Examples:
      adaptmedseg adapters merge runs/lora --out merged.safetensors --drop-gate
    """
    card = merge_into_base(_path(file), out, base, drop_gate=drop_gate)
    if "note" in card:
        print(f"note: {card['note']}")
    print(f"weights SHA-256: {recorded_hash(out)}")
    print(out)


@app.command()
def compare(
    files: Annotated[list[str], typer.Argument(help="Two or more adapter files or run folders.")],
) -> None:
    """Compare adapters: sizes, what their cards state differently, and how alike the changes are that they make.

    Each is compared with the first. Changes are those of weights, multiplied out: the cosine between them and the ratio
    of their norms, over what both change.

    \b
    Examples:
      adaptmedseg adapters compare runs/seed0 runs/seed1
    """
    if len(files) < 2:
        raise UserError(f"{files[0]}: is one adapter alone; name two or more to compare")
    paths = [_path(file) for file in files]
    read = [read_adapter(path) for path in paths]
    print(text_table(COLUMNS, [[str(path), *_row(path)] for path in paths]))
    first_card, first_tensors = read[0]
    first = changes(first_card, first_tensors)
    for path, (card, tensors) in zip(paths[1:], read[1:], strict=True):
        print(f"\n{paths[0]} → {path}")
        stated = differences(first_card, card)
        if stated:
            print(text_table(["stated", "first", "second"], [[key, str(a), str(b)] for key, (a, b) in stated.items()]))
        rows = [
            [part.part, str(part.shared), str(part.apart), _number(part.cosine), _number(part.ratio)]
            for part in compare_changes(first, changes(card, tensors))
        ]
        print(text_table(["part", "in both", "in one alone", "cosine", "norm ratio"], rows))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
