"""`adaptmedseg weights`: look at published checkpoints, make bases of them, check model files."""

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from adaptmedseg.checkpoints.convert import Source, convert, parts_of, segvol_source
from adaptmedseg.checkpoints.foreign import own_format, read_foreign
from adaptmedseg.checkpoints.known import KNOWN, fetch
from adaptmedseg.checkpoints.sam import SamSource, convert_sam, sam_prefix, sam_source
from adaptmedseg.checkpoints.source import Checkpoint
from adaptmedseg.checkpoints.store import WEIGHTS_HASH, file_hash, model_path, read_tensors
from adaptmedseg.checkpoints.verify import compare, count_of, verify_file
from adaptmedseg.cli.common import Seed, bar, parse_overrides
from adaptmedseg.errors import UserError
from adaptmedseg.models.segvol import Size3

LONG = 300  # characters of a card's entry that `inspect` shows
app = typer.Typer(
    help="Look at published checkpoints of SegVol and SAM, make model files of them, check model files.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SourceFile = Annotated[str, typer.Argument(help=f"A checkpoint file, or a known name ({', '.join(KNOWN)}).")]
Config = Annotated[
    list[str],
    typer.Option(
        help="KEY=VALUE for what weights can't tell: patch_size=4,16,16, num_heads, decoder_num_heads, text.num_heads; "
        "of a SAM fit=pad|stretch, pixels=standardised|min-max, alternatives=true|false."
    ),
]
Keys = Annotated[bool, typer.Option("--keys", help="List every key: what it is called here, or why it is left out.")]


@app.command()
def inspect(file: SourceFile, config: Config = [], keys: Keys = False) -> None:  # noqa: B006 (typer copies it)
    """Show what a file holds and what would become of each key (a known name is fetched into the cache first).

    \b
    Examples:
      adaptmedseg weights inspect SegVol_v1.pth
      adaptmedseg weights inspect pytorch_model.bin --keys
      adaptmedseg weights inspect runs/mine
    """
    own = model_path(file) if file not in KNOWN else None
    form = own and own_format(own)
    if own and form:
        _print_own(own, form, keys)
        return
    source = _read(_locate(file), parse_overrides(config))
    _print_source(source, keys)
    values, unseen = (dict(source.config), {}) if isinstance(source, SamSource) else _sizes(source)
    for name, value in values.items():
        if not name.startswith("_"):
            print(f"{name}: {_text(value)}")
    for name, example in unseen.items():
        print(f"{name}: not to be seen in the weights; `convert` needs --config {name}={example}")
    print(f"file SHA-256: {file_hash(source.path)}")


@app.command("convert")
def convert_command(
    file: SourceFile,
    out: Annotated[
        Path | None, typer.Option(help="New base file (.safetensors); a known name has its place in the cache.")
    ] = None,
    config: Config = [],  # noqa: B006
    spatial_size: Annotated[
        str | None, typer.Option(help="Another input size D,H,W: position embeddings and norms are resampled.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the card; the file's by default.")] = None,
    licence: Annotated[str | None, typer.Option(help="The weights' licence, for the card.")] = None,
    keys: Keys = False,
    overwrite: Annotated[bool, typer.Option(help="Replace --out.")] = False,
    seed: Seed = 0,
) -> None:
    """Make one model file of a published checkpoint, SegVol's or SAM's: for `train --base`, `predict --model` and so on.

    \b
    Examples:
      adaptmedseg weights convert SegVol_v1.pth --out segvol.safetensors
      adaptmedseg weights convert segvol
      adaptmedseg weights convert sam_vit_b_01ec64.pth --out sam_b.safetensors
      adaptmedseg weights convert vit_pretrain.ckpt --out encoder.safetensors --config text.kind=hashed
    """
    known = KNOWN.get(file)
    target = out or (known.converted if known else None)
    if target is None:
        raise UserError(f"{file}: say where the base shall go, with --out NAME.safetensors")
    if target.exists() and not overwrite:
        raise UserError(f"{target}: exists already; choose another --out or pass --overwrite")
    source = _read(_locate(file), parse_overrides(config))
    title, terms = name or (known.name if known else source.path.stem), licence or (known.licence if known else None)
    if isinstance(source, SamSource):
        if spatial_size is not None:
            raise UserError(f"--spatial-size {spatial_size}: is for SegVol, and {file} is a SAM; leave it out")
        card = convert_sam(source, target, name=title, licence=terms, overwrite=overwrite)
    else:
        size = _size(spatial_size)
        card = convert(source, target, name=title, licence=terms, spatial_size=size, seed=seed, overwrite=overwrite)
    _print_source(source, keys)
    if source.new:
        print(f"new: drawn with seed {seed}; train the base before it is asked for anything")
    if "resampled_from" in card:
        print(f"resampled: from {_text(card['resampled_from'])} to {spatial_size}")
    print(f"licence: {card['licence']}")
    print(f"weights SHA-256: {card[WEIGHTS_HASH]}")
    print(target)


@app.command()
def verify(
    file: Annotated[str, typer.Argument(help="A base or adapter file, a run folder or a known name.")],
    against: Annotated[
        Path | None, typer.Option(help="The checkpoint that the base was made from: compare every tensor.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base of an adapter, where its file has moved.")] = None,
    config: Config = [],  # noqa: B006
) -> None:
    """Check a model file: hash, shapes, finite values; exit code 1 where something is wrong with it.

    \b
    Examples:
      adaptmedseg weights verify segvol.safetensors
      adaptmedseg weights verify segvol.safetensors --against SegVol_v1.pth
    """
    path = model_path(file)
    if file in KNOWN and not path.exists():
        raise UserError(KNOWN[file].absent())
    verdicts = [verify_file(path, base)]
    if against is not None:
        if verdicts[0].kind != "base":
            raise UserError(f"{path}: is an adapter, which no checkpoint can be compared with; leave --against out")
        verdicts.append(compare(path, against, parse_overrides(config)))
    print(f"{path}: {verdicts[0].kind}")
    print(f"weights SHA-256: {verdicts[0].digest}")
    for verdict in verdicts:
        for note in verdict.notes:
            print(f"ok: {note}")
        for note in verdict.unchecked:
            print(f"not checked: {note}")
    problems = [problem for verdict in verdicts for problem in verdict.problems]
    for problem in problems:
        print(f"wrong: {problem}")
    if problems:
        raise typer.Exit(1)


def _locate(file: str) -> Path:
    """A checkpoint's path; a known name is fetched first where it is not here yet."""
    if file not in KNOWN:
        return Path(file)
    with bar(f"fetching {file}") as progress:
        return fetch(KNOWN[file], progress)


def _read(path: Path, given: dict[str, object]) -> Source | SamSource:
    """A published checkpoint, whichever model's it is."""
    tensors = read_foreign(path)
    read = segvol_source if sam_prefix(tensors) is None else sam_source
    return read(path, tensors, given)


def _sizes(source: Source) -> tuple[dict[str, object], dict[str, str]]:
    return source.sizes.values, source.sizes.unseen


def _size(text: str | None) -> Size3 | None:
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--spatial-size {text}: has the form D,H,W, such as 32,192,192")
    return cast(Size3, tuple(int(part) for part in parts))


def _print_source(source: Checkpoint, keys: bool) -> None:
    print(f"{source.path}: {source.layout} layout (as {source.known_from})")
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in source.tensors.values()})
    values = sum(tensor.numel() for tensor in source.tensors.values())
    print(f"loaded: {count_of(len(source.tensors))}, {values:,} values, {', '.join(dtypes)}")
    rules = {rule.name: rule for rule in source.left_out.values()}
    for rule, left_out in source.left_out_by_rule().items():
        print(f"left out by rule '{rule}': {count_of(len(left_out))} ({rules[rule].reason})")
    if source.new:
        print(f"new: {count_of(len(source.new))}, all of {', '.join(parts_of(source.new))}: fresh weights")
    if keys:
        lines = [f"{key} -> {name}" for name, key in source.keys.items()]
        lines += [f"{key} -> left out ({rule.name})" for key, rule in source.left_out.items()]
        lines += [f"(nothing) -> {name} (new)" for name in source.new]
        print("\n".join(lines))


def _print_own(path: Path, form: str, keys: bool) -> None:
    """The card of a file of this project."""
    held, metadata = read_tensors(path, form)
    print(f"{path}: {form}, {count_of(len(held))}, {sum(tensor.numel() for tensor in held.values()):,} values")
    for part, text in metadata.items():
        if part != "format":
            for line in _lines(part, text):
                print(line)
    if keys:
        print("\n".join(f"{name} {_text(list(tensor.shape))}" for name, tensor in held.items()))


def _lines(part: str, text: str) -> list[str]:
    """A JSON object as one line an entry, long lists cut short; anything else as it is."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = text
    if not isinstance(content, dict):
        return [f"{part}: {content}"]
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in content.items()}
    return [f"{part} {key}: {value[:LONG]}{'…' if value[LONG:] else ''}" for key, value in values.items()]


def _text(value: object) -> str:
    return "×".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
