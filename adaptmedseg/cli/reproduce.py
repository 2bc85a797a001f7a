"""`adaptmedseg reproduce`: published figures beside those that data and weights at hand give."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from adaptmedseg.cli.common import Device, Seed, bar, console, text_table
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError
from adaptmedseg.reproduction.receipt import RECEIPT
from adaptmedseg.reproduction.recipes import recipe, recipe_names
from adaptmedseg.reproduction.reproduce import Request, check_free, reproduce, write_receipt

LIST = "list"


def reproduce_command(
    name: Annotated[str, typer.Argument(help="A published table, or 'list' for what there is and what each needs.")],
    data: Annotated[list[str], typer.Option(help="Prepared data, or GROUP=DIR; repeat it for several.")] = [],  # noqa: B006
    weights: Annotated[list[str], typer.Option(help="Model file or run folder, or ROW=FILE; repeat it.")] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Folder for receipt.json, receipt.md and the scores.")] = None,
    base: Annotated[str | None, typer.Option(help="Base of adapters, where its file has moved.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Put our figure with its interval beside the published one, or say what is missing for it.

    Data are checked against the hashes they were prepared with, splits for patients on both sides, and models for test
    cases that they were trained on. The exit code is 1 where anything of the table is missing.

    \b
    Examples:
      adaptmedseg reproduce list
      adaptmedseg reproduce prostate-mri --data prepared/promise12 --weights segvol.safetensors --out receipts/prostate
      adaptmedseg reproduce ct-mri-400 --data prepared/amos --data prepared/promise12 --weights segvol.safetensors
        --weights LoRA=runs/lora --weights "context priors=runs/priors"
    """
    if name == LIST:
        print_recipes()
        return
    chosen = recipe(name)
    if out is not None:
        check_free(out)
    groups = [_named(text, list(chosen.data)) for text in data]
    rows = [_named(text, chosen.ours) for text in weights]
    request = Request([(group, Path(path)) for group, path in groups], rows, base, seed)
    with bar("scoring") as progress:
        receipt, records = reproduce(chosen, request, pick_device(device), progress)
    print(receipt.as_markdown(), end="")
    if out is not None:
        write_receipt(out, receipt, records)
        console.print(f"receipt: {out / RECEIPT}", style="dim", soft_wrap=True, highlight=False)
    if receipt.missing:
        console.print(f"{len(receipt.missing)} things are missing", style="yellow")
        raise typer.Exit(1)


def print_recipes() -> None:
    """What there is, and what each needs."""
    for name in recipe_names():
        found = recipe(name)
        print(f"{name}: {found.title}\n  {found.source}")
        needs = [[f"--data {group}", text] for group, text in found.data.items()]
        needs += [[f"--weights {method}", found.models[method].needs] for method in found.ours]
        table = text_table(["  needs", ""], [[f"  {option}", text] for option, text in needs])
        print(table, end="\n\n")


def _named(text: str, known: Sequence[str]) -> tuple[str | None, str]:
    """'ROW=FILE' or 'FILE'. Names that are `known` may hold '=' themselves, and so may a file that is there."""
    whole = next((name for name in known if text.startswith(f"{name}=")), None)
    if whole is None and Path(text).exists():
        return None, text
    name, sign, value = text.partition("=") if whole is None else (whole, "=", text.removeprefix(f"{whole}="))
    if not sign:
        return None, text
    if not name.strip() or not value:
        raise UserError(f"'{text}': has the form NAME=PATH; write it so, or give the path alone")
    return name.strip(), value
