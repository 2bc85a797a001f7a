"""`adaptmedseg bench`: what things cost on this machine."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from adaptmedseg.bench.agreement import Agreement, phantom_agreement
from adaptmedseg.bench.data import CROP, ORGANS, DataFigures, bench_generated, bench_source
from adaptmedseg.bench.inference import SIZES, STRUCTURES, BenchResult, BenchSettings, Way, run_bench
from adaptmedseg.bench.priors import measure_passes
from adaptmedseg.bench.slices import SAM_SIZES, measure_prompts
from adaptmedseg.bench.step import compare_steps
from adaptmedseg.cli.common import Device, console, named_pairs
from adaptmedseg.device import pick_device
from adaptmedseg.errors import UserError

app = typer.Typer(help="Measure speed and memory on this machine.", no_args_is_help=True, rich_markup_mode=None)
WAYS: tuple[Way, ...] = ("plain", "shared", "ours")


@app.command()
def inference(
    size: Annotated[str, typer.Option(help=f"Size of the model: {' or '.join(SIZES)}.")] = "released",
    shape: Annotated[str, typer.Option(help="Voxels of the volume, d,h,w.")] = "96,256,256",
    structures: Annotated[int, typer.Option(help="Structures asked.", min=1, max=len(STRUCTURES))] = 13,
    ways: Annotated[str, typer.Option(help="Of plain, shared, ours; separated by commas.")] = ",".join(WAYS),
    device: Device = "auto",
) -> None:
    """Time zoom-out-zoom-in of several structures: the plain way against sharing alone and against all we do.

    Weights are random, the same in every way, with logits shifted so that each structure covers a fifth of the view.

    \b
    Examples:
      adaptmedseg bench inference
      adaptmedseg bench inference --shape 300,512,512 --ways ours     (peak memory of a large volume)
      adaptmedseg bench inference --size small --structures 3         (seconds)
    """
    if size not in SIZES:
        raise UserError(f"--size {size}: choose one of {', '.join(SIZES)}")
    chosen = tuple(way for way in WAYS if way in ways.split(","))
    unknown = set(ways.split(",")) - set(WAYS)
    if unknown or not chosen:
        raise UserError(f"--ways {ways}: choose of {', '.join(WAYS)}, separated by commas")
    settings = BenchSettings(size, parse_shape(shape), structures, str(pick_device(device)))
    result = run_bench(settings, chosen, lambda text: console.print(text, style="dim"))
    for line in report(result):
        print(line)


@app.command()
def priors(
    size: Annotated[str, typer.Option(help=f"Size of the model: {' or '.join(SIZES)}.")] = "released",
    tasks: Annotated[int, typer.Option(help="Tasks asked of one image.", min=1)] = 8,
    bf16: Annotated[bool, typer.Option("--bf16/--float32", help="Number format of matrix products.")] = True,
    device: Device = "auto",
) -> None:
    """Time all tasks of an image in one pass against one pass a task; weights are random.

    \b
    Examples:
      adaptmedseg bench priors
      adaptmedseg bench priors --size small --tasks 20
    """
    if size not in SIZES:
        raise UserError(f"--size {size}: choose one of {', '.join(SIZES)}")
    chosen = str(pick_device(device))
    result = measure_passes(size, tasks, chosen, bf16=bf16)
    kind = "bf16" if bf16 else "float32"
    print(
        f"{tasks} tasks, model size {size}, {kind}, {chosen}, {torch.get_num_threads()} threads: one pass "
        f"{result.one_pass:.3f} s, {tasks} passes {result.passes:.3f} s, {result.ratio:.2f} times faster "
        f"({result.ratio / tasks:.2f} of {tasks}); logits differ by {result.difference:.2g}"
    )


@app.command()
def slices(
    size: Annotated[str, typer.Option(help=f"Size of the SAM: {', '.join(SAM_SIZES)}.")] = "b",
    prompts: Annotated[int, typer.Option(help="Box prompts asked of one picture.", min=1)] = 8,
    repeats: Annotated[int, typer.Option(help="Pairs of measurements; their medians count.", min=1)] = 3,
    bf16: Annotated[bool, typer.Option("--bf16/--float32", help="Number format of matrix products.")] = True,
    device: Device = "auto",
) -> None:
    """Time several prompts of one picture in one batch against one pass a prompt; weights are random.

    \b
    Examples:
      adaptmedseg bench slices
      adaptmedseg bench slices --size small --prompts 16
    """
    if size not in SAM_SIZES:
        raise UserError(f"--size {size}: choose one of {', '.join(SAM_SIZES)}")
    chosen = str(pick_device(device))
    found = measure_prompts(size, prompts, chosen, bf16=bf16, repeats=repeats)
    kind = "bf16" if bf16 else "float32"
    print(
        f"{prompts} prompts, SAM {size}, {kind}, {chosen}, {torch.get_num_threads()} threads, median of {repeats} pairs"
    )
    print(f"with encoding: batch {found.batch:.3f} s, passes {found.passes:.3f} s, {found.ratio:.2f} times faster")
    print(
        f"decoding alone: batch {found.decode_batch:.3f} s, passes {found.decode_passes:.3f} s, "
        f"{found.decode_ratio:.2f} times faster"
    )
    print(f"logits differ by at most {found.difference:.2g}")


@app.command()
def data(
    source: Annotated[Path | None, typer.Option(help="Folder or .zip to prepare, such as PROMISE12's archive.")] = None,
    modality: Annotated[str, typer.Option(help="Of the source's images.")] = "T2 MRI",
    label: Annotated[list[str], typer.Option("--label", help="Of the source, 1=NAME.")] = ["1=prostate"],  # noqa: B006
    workers: Annotated[int, typer.Option(help="Threads that prepare.", min=1)] = 2,
    shape: Annotated[str, typer.Option(help="Voxels of the generated volume, d,h,w.")] = "96,384,384",
    structures: Annotated[int, typer.Option(help="Structures in it.", min=1, max=len(ORGANS))] = len(ORGANS),
) -> None:
    """Time preparing and random crops, and weigh what lies on disk, against whole .npy volumes with sparse masks.

    \b
    Examples:
      adaptmedseg bench data
      adaptmedseg bench data --source training_data.zip
    """
    size = parse_shape(shape)
    if source is not None:
        for line in data_report(str(source), bench_source(source, modality, named_pairs(label, "--label"), workers)):
            print(line)
    for line in data_report("generated", bench_generated(size, structures)):
        print(line)


def data_report(name: str, found: DataFigures) -> list[str]:
    """The figures as lines of text."""
    sizes = "×".join(map(str, found.shape))
    lines = [f"{name}: {found.cases} cases, the first of {sizes} voxels, {found.structures} structures"]
    if found.plain_prepare is not None and found.plain_read is not None and found.our_prepare is not None:
        times, unsaved = found.plain_prepare / found.our_prepare, found.plain_read / found.our_prepare
        lines.append(
            f"preparing: {found.our_prepare:.2f} s, plainly {found.plain_prepare:.2f} s, {times:.1f} times as fast "
            f"(plainly without saving {found.plain_read:.2f} s, {unsaved:.1f} times)"
        )
    lines.append(
        f"crops of {'×'.join(map(str, CROP))}: {1 / found.our_crop:.0f} a second, plainly {1 / found.plain_crop:.1f}, "
        f"{found.plain_crop / found.our_crop:.1f} times as many"
    )
    share = found.our_bytes / found.plain_bytes
    lines.append(f"disk: {found.our_bytes / 1e6:.1f} MB, plainly {found.plain_bytes / 1e6:.1f} MB, {share:.0%}")
    lines.append(f"largest difference of a normalised voxel: {found.difference:.1e}")
    return lines


@app.command()
def agreement(
    model: Annotated[str, typer.Option(help="Known name, file or run folder.")] = "small",
    cases: Annotated[int, typer.Option(help="Phantoms of each region.", min=1)] = 3,
    device: Device = "auto",
) -> None:
    """Hold the default against `predict --exact` with trained weights, on CT phantoms: logits and Dice by structure.

    \b
    Examples:
      adaptmedseg bench agreement
      adaptmedseg bench agreement --model segvol.safetensors --cases 1
    """
    rows = list(phantom_agreement(model, cases, str(pick_device(device))))
    for way in dict.fromkeys(row.way for row in rows):
        print(way_agreement([row for row in rows if row.way == way]))


def way_agreement(rows: list[Agreement]) -> str:
    """One way's figures over all structures and cases as a line of text; Dice of those that are found at all."""
    found = [(row.dice, row) for row in rows if row.voxels and row.dice is not None]
    line = (
        f"{rows[0].way}: {len(rows)} structures, logits differ by up to {max(row.logit_difference for row in rows):.2g}"
    )
    if not found:
        return f"{line}; the exact way finds none of them"
    smallest, worst = min(found, key=lambda pair: pair[0])
    return (
        f"{line}; Dice of the {len(found)} that are found: mean {sum(value for value, _ in found) / len(found):.5f}, "
        f"smallest {smallest:.5f} ({worst.structure} of {worst.voxels} voxels, {worst.case})"
    )


@app.command()
def step(
    size: Annotated[str, typer.Option(help=f"Size of the model: {' or '.join(SIZES)}.")] = "released",
    device: Device = "auto",
) -> None:
    """Time a training step of an adapter against the reference's: six prompts, float32, all weights; random weights.

    \b
    Examples:
      adaptmedseg bench step
      adaptmedseg bench step --size small
    """
    if size not in SIZES:
        raise UserError(f"--size {size}: choose one of {', '.join(SIZES)}")
    reference, ours = compare_steps(size, str(pick_device(device)))
    for found in (reference, ours):
        print(
            f"{found.way}: {found.seconds:.2f} s a step, peak {found.peak_bytes / 2**30:.2f} GiB, "
            f"{found.trained:,} trained parameters, first loss {found.first_loss:.6f}"
        )
    print(
        f"{reference.seconds / ours.seconds:.1f} times less time, {ours.peak_bytes / reference.peak_bytes:.0%} of the "
        f"memory; the losses of the same prompts in float32 differ by {abs(reference.first_loss - ours.first_loss):.1e}"
    )


def parse_shape(text: str) -> tuple[int, int, int]:
    """'96,256,256' to three sizes. UserError for anything else."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--shape {text}: give three positive numbers d,h,w, such as 96,256,256")
    d, h, w = (int(part) for part in parts)
    return d, h, w


def report(result: BenchResult) -> list[str]:
    """The figures as lines of text; "own" memory is the peak without the pages of files."""
    settings = result.settings
    d, h, w = settings.shape
    lines = [
        f"{settings.structures} structures, {d}×{h}×{w} voxels, model size {settings.size}, {settings.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        f"{'way':8} {'seconds':>9} {'encode':>8} {'decode':>8} {'views':>6} {'prompts':>8} {'peak GB':>8} "
        f"{'own GB':>7} {'plain÷':>7} {'logits ±':>9} {'min Dice':>9}",
    ]
    plain = result.ways.get("plain")
    for name, way in result.ways.items():
        own = f"{way.anonymous_bytes / 1e9:7.2f}" if way.anonymous_bytes else f"{'':7}"
        ratio = f"{plain.seconds / way.seconds:7.1f}" if plain else f"{'':7}"
        agreement = (
            f"{result.logit_difference[name]:9.2g} {result.smallest_dice[name]:9.5f}" if plain else f"{'':9} {'':9}"
        )
        lines.append(
            f"{name:8} {way.seconds:9.2f} {way.encode:8.2f} {way.decode:8.2f} {way.views:6} {way.decodings:8} "
            f"{way.peak_bytes / 1e9:8.2f} {own} {ratio} {agreement}"
        )
    ours = result.ways.get("ours")
    if ours and ours.share and ours.first_prompt and ours.second_prompt:
        share = ours.share
        lines += [
            f"a click more on the same image: {ours.second_prompt:.3f} s, {ours.second_prompt / ours.first_prompt:.1%} "
            f"of the {ours.first_prompt:.3f} s from the file to the first mask",
            f"encoder, one view, bf16: {share.seconds:.3f} s, {share.encoder / 1e9:.0f} GFLOP/s; bare products of its "
            f"shapes {share.alike / 1e9:.0f} GFLOP/s (encoder {share.encoder / share.alike:.0%} of it), its widest one "
            f"{share.wide / 1e9:.0f} GFLOP/s ({share.encoder / share.wide:.0%})",
        ]
    return lines
