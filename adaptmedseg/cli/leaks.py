"""`adaptmedseg leaks`: patients that are in several prepared data sets, or twice in one."""

from pathlib import Path
from typing import Annotated

import typer

from adaptmedseg.cli.common import bar
from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.leaks import align, find_leaks, leaks_json
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.data.similarity import THRESHOLD


def leaks(
    data: Annotated[list[Path], typer.Argument(help="Prepared data sets.")],
    out: Annotated[Path | None, typer.Option(help="Write the pairs to this JSON file too.")] = None,
    move: Annotated[
        bool, typer.Option("--align", help="Give such patients the side they have in the first-named data set.")
    ] = False,
    threshold: Annotated[
        float, typer.Option(help="Similarity from which images count as one.", min=0, max=1)
    ] = THRESHOLD,
) -> None:
    """Find images of one patient under two names: the same file, or nearly the same image.

    Exit code 1 says that such a pair is on different sides of a split and was left there.

    \b
    Examples:
      adaptmedseg leaks prepared/promise12 prepared/saml --out leaks.json
      adaptmedseg leaks prepared/promise12 prepared/saml --align
    """
    datasets = [PreparedDataset.open(path) for path in data]
    with bar("comparing") as progress:
        found = find_leaks(datasets, threshold=threshold, progress=progress)
    for leak in found:
        sides = f"{leak.sides[0]} and {leak.sides[1]}" if leak.crosses else f"both {leak.sides[0]}"
        print(f"{leak.first} and {leak.second}: {leak.kind} ({leak.similarity:.2f}), {sides}")
    if out is not None:
        write_atomic(out, leaks_json(found))
    crossing = sum(leak.crosses for leak in found)
    print(f"{len(found)} pairs of one patient, {crossing} of them on different sides")
    if move and crossing:
        print(f"{align(datasets, found)} cases moved to the side of the first-named data set")
    elif crossing:
        raise typer.Exit(1)
