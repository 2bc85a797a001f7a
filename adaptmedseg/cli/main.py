"""The command line: one program, one error sentence, exit codes that scripts can use."""

import errno
import sys
import warnings
from collections.abc import Callable

import torch
import typer

from adaptmedseg import __version__
from adaptmedseg.device import keep_freed_memory
from adaptmedseg.errors import UserError
from adaptmedseg.training.processes import lost_process
from adaptmedseg.training.stop import STOPPED_EXIT, TrainingStopped

# What the user can do about an error of the file system.
REMEDIES = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space and run again",
    errno.EROFS: "choose another folder",
    errno.EACCES: "check its permissions or choose another folder",
    errno.EPERM: "check its permissions or choose another folder",
    errno.EEXIST: "choose another folder",
    errno.ENOTDIR: "choose another folder",
    errno.EISDIR: "give the path of a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}

MEMORY_FULL = "the memory is full; close other programs, ask for less at once or take a larger machine"
LOST_PROCESS = (
    "another process of this training has ended, or cannot be reached any more; its own last lines say why; go on from "
    "the last checkpoint with --resume"
)

app = typer.Typer(
    help="Adapt a CT foundation model to MRI: prepare data, train an adapter, evaluate, predict, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(f"adaptmedseg {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)


def _register() -> None:
    from adaptmedseg.cli import (
        adapters,
        bench_training,
        calibrate,
        check,
        compare,
        demo,
        evaluate,
        evaluate_slices,
        export,
        leaks,
        predict,
        prepare,
        reproduce,
        shifts,
        slices,
        submit,
        tokens,
        train,
        transfer,
        view,
        weights,
    )

    commands: list[Callable[..., None]] = [
        demo.demo,
        prepare.prepare,
        prepare.sets,
        slices.slices,
        leaks.leaks,
        check.check,
        train.train,
        submit.submit,
        evaluate.evaluate,
        evaluate_slices.evaluate_slices,
        calibrate.calibrate,
        predict.predict,
        view.view,
        shifts.shifts,
        evaluate.report,
        compare.compare,
        transfer.transfer,
        export.export,
    ]
    for command in commands:
        app.command()(command)
    app.command(name="reproduce")(reproduce.reproduce_command)
    for command in (tokens.tokens, tokens.probe):
        adapters.app.command()(command)
    app.add_typer(adapters.app, name="adapters")
    app.add_typer(weights.app, name="weights")
    app.add_typer(bench_training.app, name="bench")  # the same app as bench.app, with more commands


def run() -> None:
    """Entry point. Exit code 0 is success, 1 some cases failed, 2 bad input (one sentence on standard error), 75 a
    training was asked to stop and goes on with --resume."""
    if not app.registered_commands:
        _register()
    keep_freed_memory()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingStopped as stopped:
        print(f"{stopped}; start it again with --resume to go on", file=sys.stderr)
        sys.exit(STOPPED_EXIT)
    except MemoryError:
        print(f"error: {MEMORY_FULL}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError:
        remedy = "pass --device cpu or, to train, a smaller batch_size"
        print(f"error: the graphics processor's memory is full; {remedy}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # torch's way of saying MemoryError
            print(f"error: {MEMORY_FULL}", file=sys.stderr)
            sys.exit(2)
        if not lost_process(error):
            raise
        print(f"error: {LOST_PROCESS}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        place = error.filename2 or error.filename or "the output"
        print(f"error: {place}: {error.strerror}; {REMEDIES[error.errno]}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
