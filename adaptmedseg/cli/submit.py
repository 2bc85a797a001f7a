"""`adaptmedseg submit`: a training as a Slurm job, refused here and now where it could only fail there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer
import yaml

from adaptmedseg.checkpoints.fresh import fresh_config, is_fresh
from adaptmedseg.checkpoints.known import KNOWN
from adaptmedseg.checkpoints.store import FRESH, model_path
from adaptmedseg.cli.common import console, split_names
from adaptmedseg.cli.train import read_settings
from adaptmedseg.data.files import write_atomic
from adaptmedseg.data.prepared import PreparedDataset
from adaptmedseg.errors import UserError
from adaptmedseg.launch.requeue import MAX_REQUEUES, last_step
from adaptmedseg.launch.script import Resources
from adaptmedseg.launch.submit import Order, Script, Step, check_sbatch, write_scripts
from adaptmedseg.launch.submit import submit as hand_in
from adaptmedseg.training.config import TrainConfig
from adaptmedseg.training.processes import refuse_uneven
from adaptmedseg.training.run_folder import RunFolder
from adaptmedseg.training.slice_config import SliceTrainConfig
from adaptmedseg.training.training_set import training_cases

CONFIG = "config.yaml"


def submit(
    config: Annotated[str | None, typer.Argument(help="As for train; none with --strategies.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as budget.minutes=600.")] = None,
    time: Annotated[str, typer.Option(help="Limit of one job; longer trainings go on in the next.")] = "04:00:00",
    gpus: Annotated[int | None, typer.Option(help="Graphics processors a node (1 by default), a process each.")] = None,
    nodes: Annotated[int, typer.Option(help="Nodes.")] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", help="No graphics processor: one process a node, for tests.")] = False,
    cpus: Annotated[int, typer.Option(help="CPU cores a process.")] = 4,
    mem: Annotated[str | None, typer.Option(help="Memory a node, such as 32G; the cluster's default without.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition; the cluster's default without.")] = None,
    account: Annotated[str | None, typer.Option(help="Account; your default without.")] = None,
    sbatch: Annotated[list[str], typer.Option(help="One more option of sbatch, such as --qos=long.")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="New run folder; scripts and logs go to OUT.slurm.")] = Path("runs/train"),
    data: Annotated[list[Path], typer.Option(help="Prepared data set(s); replaces data.paths.")] = [],  # noqa: B006
    base: Annotated[str | None, typer.Option(help="Base to start from; replaces base.")] = None,
    fold: Annotated[int | None, typer.Option(help="Leave this fold out; replaces data.fold.", min=0)] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces seed.", min=0)] = None,
    folds: Annotated[str | None, typer.Option(help="A job array over folds: 'all', or numbers such as 0,2.")] = None,
    strategies: Annotated[
        str | None, typer.Option(help="A job array over shipped strategies: lora,gated,full.")
    ] = None,
    then: Annotated[str | None, typer.Option(help="Jobs that wait for success: evaluate or evaluate,report.")] = None,
    max_requeues: Annotated[int, typer.Option(help="How often one job may be put back.", min=0)] = MAX_REQUEUES,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the scripts and print them, submit nothing.")
    ] = False,
) -> None:
    """Write a batch script beside the run and submit it: a training that goes on after time limits and preemption.

    \b
    Examples:
      adaptmedseg submit adapt --data prepared/mri --out runs/mri --gpus 4 batch_size=8 --then evaluate,report
      adaptmedseg submit prostate --data prepared/promise12 --folds all --out runs/folds --time 60 --partition gpu
      adaptmedseg submit --strategies lora,gated,full budget.minutes=30 --data prepared/mri --out runs/strategies
      adaptmedseg submit demo --data prepared/mri --cpu --nodes 2 --time 10 --out runs/try --dry-run
    """
    if cpu and gpus is not None:
        raise UserError(f"--cpu, --gpus {gpus}: give one of them")
    if gpus is not None and gpus < 1:
        raise UserError(f"--gpus {gpus}: must be 1 or more; give --cpu for a job without graphics processors")
    resources = Resources(time, 0 if cpu else gpus or 1, nodes, cpus, mem, partition, account, list(sbatch))
    if not dry_run:
        check_sbatch()
    chosen, changes = _what(config, overrides, strategies)
    settings = [_on_volumes(read_settings(name, changes, data, base, fold, seed)) for name in chosen]
    numbers = _folds(folds, settings[0], strategies, fold)
    _check(settings, numbers, out, array=bool(folds or strategies))
    _check_resources(settings, resources)
    order = Order(
        name="strategies" if strategies else settings[0].name,
        out=out,
        arguments=_arguments(changes, data, base, fold, seed) if strategies else [str(_kept(out))],
        resources=resources,
        max_requeues=max_requeues,
        reference=_reference(settings[0]),
        data=settings[0].data.paths,
        fold=settings[0].data.fold,
        folds=numbers,
        strategies=split_names(strategies) or [],
        then=_steps(then),
    )
    scripts = write_scripts(order)
    if not strategies:  # what is changed in the original while the job waits does not matter
        write_atomic(_kept(out), yaml.safe_dump(settings[0].model_dump(mode="json"), sort_keys=False))
    _tell(order, scripts, [] if dry_run else hand_in(scripts))


def _what(config: str | None, overrides: list[str] | None, strategies: str | None) -> tuple[list[str], list[str]]:
    """Names of configurations, and the changes to them. UserError where there are none or both kinds."""
    words = [*([config] if config is not None else []), *(overrides or [])]
    if strategies is None:
        if config is None:
            raise UserError("nothing to train: give a configuration (such as adapt) or --strategies")
        return [config], words[1:]
    names = split_names(strategies) or []
    if not names or len(set(names)) < len(names):
        raise UserError(f"--strategies {strategies}: give different names separated by commas, such as lora,gated")
    if words and "=" not in words[0]:
        raise UserError(f"{words[0]}, --strategies {strategies}: give a configuration or strategies, not both")
    return [f"strategies/{name}" for name in names], words


def _on_volumes(settings: TrainConfig | SliceTrainConfig) -> TrainConfig:
    if isinstance(settings, SliceTrainConfig):
        raise UserError(
            f"{settings.name}: trains on slices, and submit writes jobs for volumes; hand in slurm/train.sbatch instead"
        )
    return settings


def _folds(folds: str | None, settings: TrainConfig, strategies: str | None, fold: int | None) -> list[int]:
    if folds is None:
        return []
    if strategies is not None or fold is not None:
        raise UserError(f"--folds {folds}: goes with one configuration, without --strategies and --fold")
    if folds == "all":
        first = PreparedDataset.open(settings.data.paths[0]) if settings.data.paths else None
        return list(range((first and first.folds) or 0)) or [0]  # without folds, fold 0 is refused with the reason
    names = split_names(folds) or []
    if not names or not all(name.isdecimal() for name in names) or len(set(names)) < len(names):
        raise UserError(f"--folds {folds}: give 'all' or different numbers separated by commas, such as 0,1,2")
    return [int(name) for name in names]


def _steps(then: str | None) -> list[Step]:
    names = split_names(then) or []
    if names not in ([], ["evaluate"], ["evaluate", "report"]):
        raise UserError(f"--then {then}: give evaluate, or evaluate,report")
    return cast(list[Step], names)


def _check(settings: list[TrainConfig], folds: list[int], out: Path, array: bool) -> None:
    """UserError for what would end the job at its start: data, folds, base, output folder."""
    for config in settings:
        asked: Sequence[int | None] = folds or [config.data.fold]
        for fold in asked:
            training_cases(config.model_copy(update={"data": config.data.model_copy(update={"fold": fold})}))
        if config.base is not None and config.model == "segvol" and not fresh_config(config.base, FRESH, 0):
            path = model_path(config.base)
            if not path.exists():
                absent = (
                    KNOWN[config.base].absent() if config.base in KNOWN else f"base '{path}': there is no such file"
                )
                raise UserError(absent)
    if array:
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; choose a new folder for --out")
    else:
        RunFolder(out).check(resume=True)


def _check_resources(settings: list[TrainConfig], resources: Resources) -> None:
    """UserError where the processes of the job could not do what a configuration asks."""
    for config in settings:
        refuse_uneven(config.batch_size, resources.processes, config.compute.accumulate)
        if config.precision == "fp16" and not resources.gpus:
            raise UserError("precision fp16: needs a graphics processor, and --cpu asks for none; set it to bf16")


def _kept(out: Path) -> Path:
    """Where the settled configuration of a submitted training is kept."""
    return out.with_name(f"{out.name}.slurm") / CONFIG


def _arguments(changes: list[str], data: list[Path], base: str | None, fold: int | None, seed: int | None) -> list[str]:
    """`adaptmedseg train`'s arguments without its configuration."""
    words = [*changes, *(word for path in data for word in ("--data", str(path)))]
    for option, value in (("--base", base), ("--fold", fold), ("--seed", seed)):
        words += [] if value is None else [option, str(value)]
    return words


def _reference(settings: TrainConfig) -> dict[str, str]:
    """The model to score beside the trained one, by name: what the training starts from."""
    if settings.model == "unet":
        return {}
    if settings.grow is not None:
        return {"before": settings.grow.adapter}
    return {} if settings.base is None or is_fresh(settings.base) else {"base": settings.base}


def _tell(order: Order, scripts: list[Script], jobs: list[str]) -> None:
    """Print the jobs, or the scripts where nothing was submitted."""
    step = last_step(order.out)
    if step:
        console.print(f"{order.out}: holds an unfinished training, which goes on from step {step}", markup=False)
    for script, job in zip(scripts, jobs, strict=False):
        print(f"job {job}: {script.path}")
    if not jobs:
        for script in scripts:
            print(f"# {script.path}\n{script.path.read_text(encoding='utf-8')}")
        console.print(f"nothing was submitted; {order.folder} holds the scripts", markup=False, soft_wrap=True)
